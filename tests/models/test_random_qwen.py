"""The tokenizer that random weights read text with: Qwen's own kind, made on the spot."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dbexp.models.random_qwen import build_tokenizer
from dbexp.models.random_weights import WORDS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    """As it is read from a folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(64).save_pretrained(folder)
    read: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return read


def test_words_are_one_token_each(tokenizer: PreTrainedTokenizerBase) -> None:
    """Wherever they stand."""
    assert len(tokenizer(" ".join(WORDS)).input_ids) == len(WORDS)
    assert all(len(tokenizer(text).input_ids) == 1 for word in WORDS for text in (word, f" {word}"))


@pytest.mark.parametrize("text", ["a photo of sks dog", "Ünicode, 123 & a\nline", "<|im_start|>user"])
def test_text_comes_back(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("thinking", "end"),
    [(True, "<|im_start|>assistant\n"), (False, "<|im_start|>assistant\n<think>\n\n</think>\n\n")],
)
def test_template(tokenizer: PreTrainedTokenizerBase, thinking: bool, end: str) -> None:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a dog"}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    assert text == f"<|im_start|>user\na dog<|im_end|>\n{end}"
    marks = {"<|im_start|>", "<|im_end|>", "<think>", "</think>"}
    assert len(tokenizer(text).input_ids) < 20
    assert marks & set(tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)) == marks - (
        {"<think>", "</think>"} if thinking else set()
    )


def test_padding(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    read = tokenizer(["a dog"], padding="max_length", truncation=True, max_length=64)
    assert len(read.input_ids[0]) == 64 and sum(read.attention_mask[0]) == 2 and read.attention_mask[0][0] == 1
