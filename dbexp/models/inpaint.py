"""Inpainting for denoisers whose latents have another number of channels than 4, which diffusers' pipeline refuses.

The same rule as there (Lugmayr et al., RePaint, 2022, eq. 8, without its resampling): after every step, what the mask
keeps is the source image with as much noise as the step leaves. It rides on the pipeline that draws from an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

Keep = Callable[[Any, int, Tensor], Tensor]
"""(pipeline, step, latents [B, c, h, w] after it) -> latents with what is kept put back."""

MASK_THRESHOLD = 128
"""Of 8-bit grey: a mask keeps what is darker, and draws the rest."""
_DIFFUSERS_CHANNELS = 4


def is_needed(pipe: Any) -> bool:
    """Whether diffusers cannot inpaint with this base: its denoiser reads latents alone, and not 4 channels of them."""
    channels = int(pipe.unet.config.in_channels)
    return channels == int(pipe.vae.config.latent_channels) != _DIFFUSERS_CHANNELS


@torch.no_grad()
def keeping(pipe: Any, image: Image.Image, mask: Image.Image, seeds: Sequence[int]) -> Keep:
    """What to call after every step of a batch that is drawn from an image.

    Latents of the image and noise come from the seeds in the order in which the pipeline itself draws them, so the
    noise that is put back is that which the image started with.

    Args:
        pipe: the pipeline that draws from an image.
        image: RGB, of the size that is drawn.
        mask: black (keep) and white (draw), mode L, of the same size.
        seeds: of the batch, one a row.
    """
    pixels = pipe.image_processor.preprocess(image).to(pipe.vae.device, pipe.vae.dtype)
    posterior = pipe.vae.encode(pixels).latent_dist
    sources, noises = [], []
    for seed in seeds:
        generator = torch.Generator("cpu").manual_seed(seed)
        latents = posterior.sample(generator) * pipe.vae.config.scaling_factor
        sources.append(latents)
        noises.append(torch.randn(latents.shape, generator=generator, dtype=latents.dtype).to(latents.device))
    source, noise = torch.cat(sources), torch.cat(noises)
    white = torch.from_numpy(np.asarray(mask) >= MASK_THRESHOLD)[None, None].float()
    opening = interpolate(white, size=source.shape[-2:]).to(source)

    def keep(pipe: Any, step: int, latents: Tensor) -> Tensor:
        times = pipe.scheduler.timesteps
        following = len(times) - pipe.num_timesteps + step + 1
        target = source
        if following < len(times):
            target = pipe.scheduler.add_noise(source, noise, times[following : following + 1])
        blended: Tensor = (1 - opening) * target + opening * latents
        return blended

    return keep
