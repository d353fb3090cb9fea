"""The tokenizer: one token a word, the end token last, the same after saving."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from dbexp.sample import prompts
from dbexp.storybook.pretrain.architecture import TEXT_LENGTH, build_text_encoder
from dbexp.storybook.pretrain.corpus import NAMES, example
from dbexp.storybook.pretrain.tokenizer import END, RARE_TOKEN, START, build_tokenizer, save_tokenizer, vocabulary
from dbexp.storybook.world.identity import CLASS_NOUNS


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def test_ids_are_dense_and_the_end_is_the_highest(tokenizer: CLIPTokenizer) -> None:
    vocab, _ = vocabulary()
    assert sorted(vocab.values()) == list(range(len(vocab)))
    assert len(tokenizer) == len(vocab)
    assert tokenizer.eos_token_id == max(vocab.values()) == vocab[END]
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id) == (vocab[START], vocab[END])


def test_every_word_of_the_prompts_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for template in (*prompts.LIVE, *prompts.OBJECT):
        for class_noun in CLASS_NOUNS:
            text = template.format_map({"token": RARE_TOKEN, "class": class_noun})
            assert len(tokenizer.tokenize(text)) == len(text.split()), text
    for word in (RARE_TOKEN, *NAMES):
        assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_captions_fit(tokenizer: CLIPTokenizer) -> None:
    rng = random.Random(0)
    assert max(len(tokenizer(example(rng).caption).input_ids) for _ in range(300)) < TEXT_LENGTH


def test_any_text_can_be_encoded(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("A photo of Zoë's <v1> dog, 2 m tall!").input_ids
    assert ids.count(tokenizer.eos_token_id) == 1
    assert len(set(ids)) > 8


def test_saved_files_are_read_back(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in tmp_path.iterdir()}
    loaded = CLIPTokenizer.from_pretrained(str(tmp_path))
    for text in ("a sks dog in the snow", "a photo of an unheard-of thing"):
        assert loaded(text).input_ids == tokenizer(text).input_ids


def test_the_text_encoder_knows_the_special_tokens(tokenizer: CLIPTokenizer) -> None:
    config = build_text_encoder(tokenizer).config
    assert (config.bos_token_id, config.eos_token_id) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert config.vocab_size == len(tokenizer)
