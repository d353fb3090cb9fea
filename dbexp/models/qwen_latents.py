"""Latents of families that have Qwen-Image's VAE: that of films, of which a picture is one frame.

Shapes: B rows; C latent channels; h x w latents of 8 x 8 pixels. The denoiser reads 2 x 2 of them as a token of 4 C
channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dbexp.models import VAE, Batch
from dbexp.models.known import WHOLE, Settings

KNOWN_VAE: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKLQwenImage",),
    "z_dim": (WHOLE,),
    "input_channels": (3,),
}
"""What its file may say."""
_CHANNELS, _PATCH = 16, 2


def packed(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, (h / 2) (w / 2), 4 C], rows of tokens one after the other."""
    tokens: Tensor = nn.functional.pixel_unshuffle(latents, _PATCH)
    return tokens.flatten(2).transpose(1, 2)


def unpacked(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse; height and width [latents]."""
    square = tokens.transpose(1, 2).unflatten(2, (height // _PATCH, width // _PATCH))
    latents: Tensor = nn.functional.pixel_shuffle(square, _PATCH)
    return latents


def disagreements(settings: Settings) -> Iterator[tuple[str, str]]:
    """Of the VAE with itself and with the denoiser; see `Checkpoint.disagreements`."""
    vae, denoiser = settings["vae"], settings["transformer"]
    channels = vae.get("z_dim", _CHANNELS)
    if (read := denoiser.get("in_channels", 64)) != _PATCH**2 * channels:
        yield (
            "transformer",
            f"reads {read} channels (in_channels), not {_PATCH**2 * channels}, {_PATCH**2} times the VAE's z_dim",
        )
    for field in ("latents_mean", "latents_std"):
        values = vae.get(field)
        if values is not None and not (isinstance(values, list) and len(values) == channels):
            yield "vae", f"says {field} that is no list of {channels} numbers (z_dim)"


class QwenLatents:
    """For checkpoints whose pipelines are asked for latents."""

    part: Any
    device: torch.device
    vae_dtype: torch.dtype

    @property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of latents, fp32 [C, 1, 1]."""
        config: Any = self.part(VAE).config
        mean, std = (torch.tensor(values, device=self.device) for values in (config.latents_mean, config.latents_std))
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Model.encode_images`."""
        film = pixels[:, :, None].to(self.device, self.vae_dtype)
        posterior, (mean, std) = self.part(VAE).encode(film).latent_dist, self._statistics
        return ((posterior.mean[:, :, 0] - mean) / std).contiguous(), (posterior.std[:, :, 0] / std).contiguous()

    def decode(self, pipe: Any, latents: Tensor, batch: Batch) -> NDArray[Any]:
        """See `Checkpoint.decode`."""
        scale = 8
        (mean, std), vae = self._statistics, pipe.vae
        square = unpacked(latents.float(), batch.height // scale, batch.width // scale) * std + mean
        with torch.inference_mode():
            decoded = vae.decode(square[:, :, None].to(vae.dtype), return_dict=False)[0][:, :, 0]
            images: NDArray[Any] = pipe.image_processor.postprocess(decoded, output_type="np")
        return images
