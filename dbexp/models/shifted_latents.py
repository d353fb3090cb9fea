"""Latents that are shifted and scaled, as Stable Diffusion 3 and FLUX.1 have them: z = (E(x) - shift) * scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dbexp.models import VAE, Batch, start
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.known import POSITIVE

KNOWN_VAE: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKL",),
    "in_channels": (3,),
    "out_channels": (3,),
    "scaling_factor": (POSITIVE,),
    "shift_factor": (POSITIVE, 0, 0.0),
    "latents_mean": (None,),
    "latents_std": (None,),
}
"""What the file of such a VAE may say."""


class ShiftedLatents(Checkpoint):
    """Latents are drawn from the posterior, in full precision, here and never in a pipeline."""

    output = "latent"

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae: Any = self.part(VAE)
        posterior = vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        shift, scale = vae.config.shift_factor, vae.config.scaling_factor
        return ((posterior.mean - shift) * scale).contiguous(), (posterior.std * scale).contiguous()

    def decode(self, pipe: Any, latents: Any, batch: Batch) -> NDArray[np.floating[Any]]:
        settings = pipe.vae.config
        return super().decode(pipe, latents.float() / settings.scaling_factor + settings.shift_factor, batch)

    def start(self, batch: Batch) -> dict[str, Any]:
        """A pipeline's arguments for the image that a batch starts from; nothing where there is none."""
        if batch.image is None:
            return {}
        latents, generators = start.drawn_latents(self.encode_images, batch.image, batch.seeds)
        arguments = {"image": latents.to(self.dtype), "generator": generators}
        if batch.mask is not None:  # which the denoiser is not shown; the pipeline would encode it nevertheless
            arguments["masked_image_latents"] = arguments["image"]
        return {**arguments, "width": batch.width, "height": batch.height}
