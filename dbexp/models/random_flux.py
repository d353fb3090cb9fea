"""A FLUX.1 pipeline of random weights and two hundred thousand parameters, written as a normal pipeline folder."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel

from dbexp.models import random_t5
from dbexp.models.random_parts import clip_config, small_vae
from dbexp.models.random_weights import WORDS, build_tokenizer

VERSION = 1
_CLIP_TOKENS, _T5_TOKENS = 32, 64
_CLIP_WIDTH, _T5_WIDTH = 16, 24


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
    tokenizer_2 = random_t5.build_tokenizer(_T5_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = FluxPipeline(
            scheduler=_scheduler(),
            vae=small_vae(0.3611, 0.1159),
            text_encoder=CLIPTextModel(clip_config(_CLIP_WIDTH, tokenizer)),
            tokenizer=tokenizer,
            text_encoder_2=random_t5.small_encoder(tokenizer_2, width=_T5_WIDTH),
            tokenizer_2=tokenizer_2,
            transformer=_transformer(),
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _scheduler() -> FlowMatchEulerDiscreteScheduler:
    """That of the published checkpoint: it shifts by the size of the picture."""
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )


def _transformer() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_T5_WIDTH,
        pooled_projection_dim=_CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
