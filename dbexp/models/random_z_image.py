"""A Z-Image pipeline of random weights and a few hundred thousand parameters, written as a normal pipeline folder.

The geometry is the true one: 8 x 8 pixels a latent, 2 x 2 latents a token, tokens in blocks of 32.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from transformers import Qwen3Model

from dbexp.models import random_qwen
from dbexp.models.random_parts import small_vae

VERSION = 1
_MAX_TOKENS = 64
_WIDTH, _LAYERS = 16, 3


def build_random(folder: Path, seed: int = 0) -> Path:
    """Write a pipeline folder.

    Args:
        folder: where; made if missing.
        seed: of the weights.

    Returns:
        `folder`.
    """
    tokenizer = random_qwen.build_tokenizer(_MAX_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = ZImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
            vae=small_vae(0.3611, 0.1159),
            text_encoder=Qwen3Model(random_qwen.small_config(tokenizer, width=_WIDTH, layers=_LAYERS)),
            tokenizer=tokenizer,
            transformer=_transformer(),
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _transformer() -> ZImageTransformer2DModel:
    transformer = ZImageTransformer2DModel(
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=_WIDTH,
        axes_dims=[4, 6, 6],
        axes_lens=[2 * _MAX_TOKENS, 64, 64],
    )
    with torch.no_grad():  # fresh ones are 0, as if padding were nothing
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    return transformer
