"""What FLUX.2 dev reads text with, with random weights: a tokenizer in Mistral's manner, and a small Mistral 3."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import (
    Mistral3Config,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
)

from dbexp.models.mistral import SYSTEM_MESSAGE
from dbexp.models.random_weights import WORDS, byte_pairs, byte_symbols

_SPACE = "\u0120"
"""How byte-level BPE writes the space that a word begins with."""
_PICTURE = ("[IMG]", "[IMG_BREAK]", "[IMG_END]")
_MARKS = ("<s>", "</s>", "<pad>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[INST]", "[/INST]", *_PICTURE)
_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}[SYSTEM_PROMPT]{{ message.content[0].text }}[/SYSTEM_PROMPT]"
    "{% else %}[INST]{{ message.content[0].text }}[/INST]{% endif %}{% endfor %}"
)
"""What Mistral's own does with a message of the system and one of a user."""
_PIXELS = 8
"""Of a patch that the encoder could see."""


def build_processor(max_tokens: int) -> PixtralProcessor:
    """A byte-level tokenizer, and what would read pictures. It knows the words of this package's prompts and those of
    the system's message as one token each, and spells the rest.

    Args:
        max_tokens: what it says the model reads at most.
    """
    words = list(dict.fromkeys([*WORDS, *re.findall("[A-Za-z]+", SYSTEM_MESSAGE)]))
    tokens, merges = byte_pairs([*map(list, words), *([_SPACE, *word] for word in words)])
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([*_MARKS, *byte_symbols(), *tokens]))}
    fast = Tokenizer(BPE(vocabulary, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    # as the published one, which begins every text so, unless it is asked not to
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=list(_MARKS[3:]),
        model_max_length=max_tokens,
        padding_side="right",
    )
    return PixtralProcessor(PixtralImageProcessor(), tokenizer, patch_size=_PIXELS, chat_template=_TEMPLATE)


def small_config(tokenizer: PreTrainedTokenizerFast, *, width: int, layers: int) -> Mistral3Config:
    """Settings of a small Mistral 3 that reads what a tokenizer writes.

    Args:
        width: of the hidden states.
        layers: of the transformer.
    """
    sight: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 4 * _PIXELS}
    return Mistral3Config(
        text_config=MistralConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=tokenizer.model_max_length,
            sliding_window=None,
            initializer_range=0.2,  # ten times the usual, or prompts would hardly differ in so small a model
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=PixtralVisionConfig(hidden_size=16, intermediate_size=32, patch_size=_PIXELS, **sight),
        image_token_index=tokenizer.convert_tokens_to_ids(_PICTURE[0]),
    )
