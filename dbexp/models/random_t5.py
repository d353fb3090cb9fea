"""What several families read long texts with, with random weights: T5's tokenizer and a small encoder (arXiv
1910.10683)."""

from __future__ import annotations

import string

from transformers import T5Config, T5EncoderModel, T5Tokenizer

from dbexp.models.random_weights import WORDS

_SPACE = "\u2581"
"""How SentencePiece writes the space that a word begins with."""
_WORD, _LETTER = -3.0, -8.0
"""Log-likelihoods of pieces: words are taken whole where they can be."""


def build_tokenizer(max_tokens: int) -> T5Tokenizer:
    """A unigram tokenizer that knows the words of this package's prompts as one token each, and spells the rest.

    Args:
        max_tokens: what it says the model reads at most.
    """
    letters = sorted({*string.ascii_letters, *string.digits, *string.punctuation})
    return T5Tokenizer(
        vocab=[
            ("<pad>", 0.0),
            ("</s>", 0.0),
            ("<unk>", -20.0),
            (_SPACE, -5.0),
            *((_SPACE + word, _WORD) for word in WORDS),
            *((letter, _LETTER) for letter in letters),
        ],
        extra_ids=0,
        model_max_length=max_tokens,
    )


def small_encoder(tokenizer: T5Tokenizer, *, width: int) -> T5EncoderModel:
    """A small encoder, of the newer kind with a gated feed-forward layer, that reads what a tokenizer writes.

    Args:
        width: of the hidden states.
    """
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
