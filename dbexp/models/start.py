"""What an image becomes that drawing starts from, where a pipeline would encode it in the denoiser's precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def pixels(image: Image.Image) -> Tensor:
    """fp32 [1, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1


def drawn_latents(
    encode: Callable[[Tensor], tuple[Tensor, Tensor]], image: Image.Image, seeds: Sequence[int]
) -> tuple[Tensor, list[torch.Generator]]:
    """A latent of an image for each seed, as pipelines draw them from the posterior before any noise.

    Args:
        encode: `Model.encode_images`.
        image: RGB.
        seeds: of the rows.

    Returns:
        fp32 [B, C, h, w], and the generators as this leaves them, which draw the noise.
    """
    mean, std = encode(pixels(image))
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    rows = [mean + std * torch.randn(mean.shape, generator=each).to(mean.device) for each in generators]
    return torch.cat(rows), generators
