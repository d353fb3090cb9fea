"""A Stable Diffusion 3.5 pipeline of random weights and two hundred thousand parameters, as a normal pipeline folder.

As in the medium one, the first blocks have a second attention to the picture, and the last writes no text.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection

from dbexp.models import random_t5
from dbexp.models.random_parts import clip_config, small_vae
from dbexp.models.random_weights import WORDS, build_tokenizer

VERSION = 1
_CLIP_TOKENS, _T5_TOKENS = 32, 64
_CLIP_WIDTHS, _T5_WIDTH = (16, 20), 40
_HEADS, _HEAD = 4, 8
_POSITIONS = 32
"""Of a side, in tokens of 16 pixels."""


def build_random(folder: Path, seed: int = 0) -> Path:
    """Write a pipeline folder.

    Args:
        folder: where; made if missing.
        seed: of the weights.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(folder / "tokenizer", WORDS, _CLIP_TOKENS)
    tokenizer_2 = build_tokenizer(folder / "tokenizer_2", WORDS, _CLIP_TOKENS)
    tokenizer_2.pad_token = "!"  # as in the true one
    tokenizer_3 = random_t5.build_tokenizer(_T5_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusion3Pipeline(
            transformer=_transformer(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=small_vae(1.5305, 0.0609),
            text_encoder=CLIPTextModelWithProjection(clip_config(_CLIP_WIDTHS[0], tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=CLIPTextModelWithProjection(clip_config(_CLIP_WIDTHS[1], tokenizer_2)),
            tokenizer_2=tokenizer_2,
            text_encoder_3=random_t5.small_encoder(tokenizer_3, width=_T5_WIDTH),
            tokenizer_3=tokenizer_3,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _transformer() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=3,
        attention_head_dim=_HEAD,
        num_attention_heads=_HEADS,
        joint_attention_dim=_T5_WIDTH,
        caption_projection_dim=_HEADS * _HEAD,
        pooled_projection_dim=sum(_CLIP_WIDTHS),
        pos_embed_max_size=_POSITIONS,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
