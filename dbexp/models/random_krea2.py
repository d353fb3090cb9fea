"""A Krea 2 pipeline of random weights and three hundred thousand parameters, written as a normal pipeline folder.

The geometry is the true one: 8 x 8 pixels a latent, 2 x 2 latents a token, 34 tokens before a prompt and 5 behind it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Krea2Pipeline, Krea2Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLModel

from dbexp.models import random_qwen
from dbexp.models.qwen_frame import BEFORE, DROPPED
from dbexp.models.random_qwen_image import MARKS, small_vae, words_of

VERSION = 1
_MAX_TOKENS, _WIDTH = DROPPED + 96, 16
_LAYERS = (1, 2, 3)
"""Of the encoder's four, whose states the denoiser reads."""


def build_random(folder: Path, seed: int = 0, *, distilled: bool = False) -> Path:
    """Write a pipeline folder.

    Args:
        folder: where; made if missing.
        seed: of the weights.
        distilled: it calls itself a checkpoint that was distilled for few steps without guidance.

    Returns:
        `folder`.
    """
    tokenizer = random_qwen.build_tokenizer(_MAX_TOKENS, words=words_of(BEFORE), marks=MARKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = Krea2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=1.15,
                base_image_seq_len=256,
                max_image_seq_len=6400,
            ),
            vae=small_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=_transformer(),
            text_encoder_select_layers=_LAYERS,
            is_distilled=distilled,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen3VLModel:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids: dict[str, Any] = {name: tokenizer.convert_tokens_to_ids(mark) for name, mark in zip(names, MARKS, strict=True)}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": max(_LAYERS) + 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 2 * _MAX_TOKENS,
        "initializer_range": 0.2,  # ten times the usual, or prompts would hardly differ in so small a model
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [2, 1, 1]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sight = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "num_position_embeddings": 16,
        "out_hidden_size": _WIDTH,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=sight, **ids))


def _transformer() -> Krea2Transformer2DModel:
    return Krea2Transformer2DModel(
        in_channels=64,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=_WIDTH,
        num_text_layers=len(_LAYERS),
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )
