"""A FLUX.2 klein pipeline of random weights and a few hundred thousand parameters, written as a normal pipeline folder.

The geometry is the true one: 8 x 8 pixels a latent, 2 x 2 latents a token, text states of three layers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from transformers import Qwen3ForCausalLM

from dbexp.models import random_qwen

VERSION = 1
_MAX_TOKENS = 64
_WIDTH, _LAYERS = 16, 28  # the denoiser reads states as deep as layer 27


def build_random(folder: Path, seed: int = 0, *, distilled: bool = False) -> Path:
    """Write a pipeline folder.

    Args:
        folder: where; made if missing.
        seed: of the weights.
        distilled: it calls itself a checkpoint that was distilled for few steps without guidance.

    Returns:
        `folder`.
    """
    tokenizer = random_qwen.build_tokenizer(_MAX_TOKENS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=small_vae(),
            text_encoder=Qwen3ForCausalLM(random_qwen.small_config(tokenizer, width=_WIDTH, layers=_LAYERS)),
            tokenizer=tokenizer,
            transformer=small_transformer(3 * _WIDTH, guidance=False),
            is_distilled=distilled,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def small_vae() -> AutoencoderKLFlux2:
    """A VAE of the true geometry, whose statistics are not those of a fresh one."""
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=32, sample_size=64
    )
    # of a fresh one they are 0 and 1, as if latents needed no normalisation
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.02, 0.1)
    return vae


def small_transformer(text_width: int, *, guidance: bool) -> Flux2Transformer2DModel:
    """A denoiser of two blocks of each kind.

    Args:
        text_width: of the states that it reads.
        guidance: whether it reads a number for it.
    """
    return Flux2Transformer2DModel(
        in_channels=128,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=text_width,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance,
    )
