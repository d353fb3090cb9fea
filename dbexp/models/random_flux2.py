"""A FLUX.2 dev pipeline of random weights and a few hundred thousand parameters, written as a normal pipeline folder.

The geometry is the true one: 8 x 8 pixels a latent, 2 x 2 latents a token, text states of three layers.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2Pipeline
from transformers import Mistral3ForConditionalGeneration

from dbexp.models import random_mistral
from dbexp.models.random_flux2_klein import small_transformer, small_vae

VERSION = 1
_MAX_TOKENS = 96
_WIDTH, _LAYERS = 16, 31  # the denoiser reads states as deep as layer 30


def build_random(folder: Path, seed: int = 0) -> Path:
    """Write a pipeline folder.

    Args:
        folder: where; made if missing.
        seed: of the weights.

    Returns:
        `folder`.
    """
    processor = random_mistral.build_processor(_MAX_TOKENS)
    settings = random_mistral.small_config(processor.tokenizer, width=_WIDTH, layers=_LAYERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = Flux2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
            vae=small_vae(),
            text_encoder=Mistral3ForConditionalGeneration(settings),
            tokenizer=processor,
            transformer=small_transformer(3 * _WIDTH, guidance=True),
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder
