"""The same images: what stock diffusers draws with a written file, against what this package draws with the run's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dbexp.models import VAE, Model
from dbexp.models.lora_file import merged

LEAST_PSNR = 40.0
"""dB; below it a written file does not give the run's images."""
SEEDS = (0, 1)


@dataclass(frozen=True)
class Comparison:
    """Written files against the run's."""

    psnr: Mapping[str, float]
    """File name -> PSNR in dB of its images to the run's; inf for the same bytes."""
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
    """

    def draw(pipe: Any) -> NDArray[np.uint8]:
        images = pipe(
            prompt=[prompt] * len(SEEDS),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            height=resolution,
            width=resolution,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
            output_type="np",
        ).images
        return (images * 255).round().astype(np.uint8)  # type: ignore[no-any-return]  # the pipeline is untyped

    base = draw(model.pipeline(None))
    with merged(model, lora):
        ours = draw(model.pipeline(None))
    model.release(VAE, model.family.denoiser, *model.family.encoders)
    return Comparison({path.name: psnr(draw(model.stock_pipeline(path)), ours) for path in files}, psnr(base, ours))


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit images of one shape: 10 log10(255^2 / mean squared difference)."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def decibel(psnr: float) -> str:
    """A PSNR as one says it."""
    return "identical" if math.isinf(psnr) else f"{psnr:.1f} dB"
