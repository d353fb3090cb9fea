"""Images that a family's test draws: by its model, and as anybody would with a stock pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dbexp.models import Batch, Model
from dbexp.train.adapter import AdapterSlots, save
from tests.models.families import LONG

PROMPTS = ("a photo of sks dog", LONG)
SEEDS = (3, 4)
WIDTH, HEIGHT = 96, 64


def picture() -> Image.Image:
    """Noise to start from."""
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def right_half() -> Image.Image:
    """A mask that keeps the left half."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, WIDTH // 2 :] = 255
    return Image.fromarray(mask)


def batch(model: Model, guidance: float, *, steps: int = 3, negative: str = "", **others: Any) -> Batch:
    """Both prompts, each encoded alone."""
    with torch.no_grad():
        texts = [(model.encode(model.tokenize([prompt])), [1]) for prompt in PROMPTS]
        unguided = None if not model.guided(guidance) else model.collate([(model.unconditional(negative), [2])])
    return Batch(model.collate(texts), unguided, SEEDS, steps, guidance, WIDTH, HEIGHT, **others)


def draw(model: Model, drawn: Batch, sampler: str | None = None) -> NDArray[np.floating[Any]]:
    """A batch, by the pipeline for what it starts from."""
    task = "text" if drawn.image is None else "image" if drawn.mask is None else "inpaint"
    return model.draw(model.pipeline(sampler, task), drawn)


def stock_draw(pipe: Any, guidance_scale: float | None, **others: Any) -> NDArray[np.floating[Any]]:
    """Both prompts, as anybody would have a stock pipeline draw them.

    Args:
        guidance_scale: as the pipeline counts it.
        others: arguments of its call.
    """
    images: NDArray[np.floating[Any]] = pipe(
        prompt=list(PROMPTS),  # named, for some take an image first; and a list of its own, for some write into it
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        **{"num_inference_steps": 3, "height": HEIGHT, "width": WIDTH, "output_type": "np", **others},
        guidance_scale=guidance_scale,
    ).images
    return images


def save_lora(model: Model, preset: str, path: Path, strength: float) -> None:
    """Write a LoRA of the denoiser, at the sites of a preset, whose alpha (6) is not its rank (4).

    Args:
        strength: deviation of B: pictures must change.
    """
    ranks, alphas = {model.family.denoiser: 4}, {model.family.denoiser: 6.0}
    with AdapterSlots(model, preset, 1, ranks) as slots:
        adapter = slots.open(0, ranks, alphas, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for up in adapter.up.values():
            up.copy_(strength * torch.randn(up.shape, generator=generator))
    save(path, adapter, model, {})
