"""Inpainting for denoisers whose latents have another number of channels than 4, which diffusers' pipeline refuses.

The same rule as there (Lugmayr et al., RePaint, 2022, eq. 8, without its resampling): after every step, what the mask
keeps is the source picture with as much noise as the step leaves. It rides on the pipeline that draws from a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dbexp.generate.grid import Drawing, Shot

Keep = Callable[[Any, int, Tensor], Tensor]
"""(pipeline, step, latents [B, c, h, w] after it) -> latents with what is kept put back."""

_DIFFUSERS_CHANNELS = 4


def is_needed(pipe: Any) -> bool:
    """Whether diffusers cannot inpaint with this base: its denoiser reads latents alone, and not 4 channels of them."""
    channels = int(pipe.unet.config.in_channels)
    return channels == int(pipe.vae.config.latent_channels) != _DIFFUSERS_CHANNELS


@torch.no_grad()
def keeping(pipe: Any, batch: Sequence[Shot], drawn: Drawing) -> Keep:
    """What to call after every step of a batch that is drawn from `drawn.init`.

    Latents of the picture and noise come from the shots' seeds in the order in which the pipeline itself draws them, so
    the noise that is put back is that which the picture started with.
    """
    assert drawn.mask is not None
    picture = pipe.image_processor.preprocess(drawn.init).to(pipe.vae.device, pipe.vae.dtype)
    encoded = pipe.vae.encode(picture).latent_dist
    of_picture, noises = [], []
    for shot in batch:
        generator = torch.Generator("cpu").manual_seed(shot.seed)
        latents = encoded.sample(generator) * pipe.vae.config.scaling_factor
        of_picture.append(latents)
        noises.append(torch.randn(latents.shape, generator=generator, dtype=latents.dtype).to(latents.device))
    source, noise = torch.cat(of_picture), torch.cat(noises)
    white = torch.from_numpy(np.asarray(drawn.mask) >= 128)[None, None].float()
    mask = interpolate(white, size=source.shape[-2:]).to(source)

    def keep(pipe: Any, step: int, latents: Tensor) -> Tensor:
        times = pipe.scheduler.timesteps
        following = len(times) - pipe.num_timesteps + step + 1
        known = source
        if following < len(times):
            known = pipe.scheduler.add_noise(source, noise, times[following : following + 1])
        blended: Tensor = (1 - mask) * known + mask * latents
        return blended

    return keep
