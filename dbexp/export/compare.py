"""The same images: what stock diffusers draws with a written file, against what this package draws with the run's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dbexp.core.errors import ConfigError
from dbexp.models import VAE, Batch, Conditioning, Model
from dbexp.models.lora_file import merged
from dbexp.sample.text import encode

Images = NDArray[np.floating[Any]]

LEAST_PSNR = 40.0
"""dB; below it a written file does not give the run's images."""
SEEDS = (0, 1)


@dataclass(frozen=True)
class Comparison:
    """Written files against the run's."""

    psnr: Mapping[str, float]
    """File name -> PSNR in dB of its images to the run's; inf for the same bytes, NaN for images that are none."""
    without: float
    """PSNR of the base model's images to the run's: what a file without effect would score."""

    @property
    def different(self) -> list[str]:
        """Files whose images are others."""
        return [name for name, psnr in self.psnr.items() if not psnr > LEAST_PSNR]

    @property
    def meaningful(self) -> bool:
        """Whether a file without effect would have failed."""
        return self.without < LEAST_PSNR


def compare(
    model: Model, lora: Path, files: Sequence[Path], *, prompt: str, steps: int, guidance_scale: float, resolution: int
) -> Comparison:
    """Draw images with the run's LoRA, without it, and with each written file in a pipeline of its own.

    In full precision: halves round so coarsely that a merged LoRA and one beside the weights differ visibly.

    Args:
        model: the base, in fp32. Its parts are dropped from memory afterwards.
        lora: the run's file.
        files: the written ones.
        prompt: filled in.
        steps, guidance_scale, resolution: of the images.

    Raises:
        ConfigError: the base's images or the run's are none: they have pixels that are NaN.
    """

    def draw(pipe: Any, text: Conditioning | tuple[str, ...], negative: Conditioning | None) -> Images:
        return model.draw(pipe, Batch(text, negative, SEEDS, steps, guidance_scale, resolution, resolution))

    def draw_ours(lora: Path | None) -> Images:
        texts = encode(model, [prompt], "" if model.guided(guidance_scale) else None, lora)
        with merged(model, lora, parts=[model.family.denoiser]):
            return draw(model.pipeline(None), texts.rows([prompt] * len(SEEDS)), texts.negative_rows(len(SEEDS)))

    base, ours = draw_ours(None), draw_ours(lora)
    for name, images in ((model.name, base), (lora, ours)):
        if not np.isfinite(images).all():
            raise ConfigError(f"{name}: draws pictures with pixels that are NaN, so no file can be compared with it")
    model.release(VAE, model.family.denoiser, *model.family.encoders)
    prompts = (prompt,) * len(SEEDS)
    values = {path.name: _difference(draw(model.stock_pipeline(path), prompts, None), ours) for path in files}
    return Comparison(values, _difference(base, ours))


def _difference(images: Images, ours: Images) -> float:
    """PSNR of images in [0, 1] to finite ones; NaN where a pixel is: as an integer it would pass for black."""
    if not np.isfinite(images).all():
        return math.nan
    return psnr((images * 255).round().astype(np.uint8), (ours * 255).round().astype(np.uint8))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images of one shape: 10 log10(255^2 / mean squared difference)."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def decibel(psnr: float) -> str:
    """A PSNR as one says it."""
    if math.isnan(psnr):
        return "no"
    return "identical" if math.isinf(psnr) else f"{psnr:.1f} dB"
