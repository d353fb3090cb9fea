"""What several families read text with, with random weights: Qwen's tokenizer, and a small Qwen3 (arXiv 2505.09388)."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import Qwen2Tokenizer, Qwen3Config

from dbexp.models.random_weights import WORDS, byte_pairs, byte_symbols

_SPACE = "\u0120"
"""How byte-level BPE writes the space that a word begins with."""
_TURNS = ("user", "assistant")
_THINK = ("<think>", "</think>")
_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's own does with the one message of a user: without thinking, an empty thought is put before the answer."""


def build_tokenizer(max_tokens: int, *, words: Sequence[str] = (), marks: Sequence[str] = ()) -> Qwen2Tokenizer:
    """A byte-level tokenizer that knows the words of this package's prompts as one token each, and spells the rest.

    Args:
        max_tokens: what it says the model reads at most.
        words: others that it knows.
        marks: others that stand for something that is no text.
    """
    symbols, words = byte_symbols(), [word for word in words if word not in WORDS]
    known = [*_TURNS, *WORDS, *words]
    tokens, merges = byte_pairs([*map(list, known), *([_SPACE, *word] for word in (*WORDS, *words))])
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*symbols, *tokens, *_MARKS, *_THINK]))}
    tokenizer = Qwen2Tokenizer(
        vocabulary,
        merges,
        chat_template=_TEMPLATE,
        model_max_length=max_tokens,
        padding_side="right",
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*_MARKS[1:], *marks]})
    tokenizer.add_tokens(list(_THINK))  # text like any other, but never taken apart
    return tokenizer


def small_config(tokenizer: Qwen2Tokenizer, *, width: int, layers: int) -> Qwen3Config:
    """Settings of a small Qwen3 that reads what a tokenizer writes.

    Args:
        width: of the hidden states.
        layers: of the transformer.
    """
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=0.2,  # ten times the usual, or prompts would hardly differ in so small a model
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
