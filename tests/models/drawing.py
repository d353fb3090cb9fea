"""Images that a family's test draws: by its model, and as anybody would with a stock pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dbexp.models import GUIDANCE, Batch, Model, lora_file
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


def save_lora(model: Model, preset: str, path: Path, strength: float, *, text_encoders: bool = False) -> None:
    """Write a LoRA of the denoiser, at the sites of a preset, whose alpha (6) is not its rank (4).

    Args:
        strength: deviation of B: pictures must change.
        text_encoders: adapt them, too, where they can be; their ranks are 2, their alphas 3, 5, ...
    """
    ranks, alphas = {model.family.denoiser: 4}, {model.family.denoiser: 6.0}
    for number, part in enumerate(model.family.text_parts if text_encoders else ()):
        ranks[part], alphas[part] = 2, 3.0 + 2 * number
    with AdapterSlots(model, preset, 1, ranks) as slots:
        adapter = slots.open(0, ranks, alphas, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for up in adapter.up.values():
            up.copy_(strength * torch.randn(up.shape, generator=generator))
    save(path, adapter, model, {})


def assert_lanes_draw(model: Model, preset: str, lora: Path, channels: int) -> None:
    """With a LoRA as adapters of two lanes the denoiser predicts what it does with the LoRA merged: every layer of the
    preset sees rows, with texts of two lengths, so that lanes can share it.

    Args:
        lora: of `save_lora`.
        channels: of latents.
    """
    denoiser = model.family.denoiser
    noisy, times = torch.randn(2, channels, 8, 8), torch.tensor([0.3, 0.9])
    ranks, alphas = {denoiser: 4}, {denoiser: 6.0}
    pairs = lora_file.read(lora, model).weights
    weights = {name: pair for name, pair in pairs.items() if name.startswith(f"{denoiser}.")}
    with torch.no_grad():
        text = batch(model, 1.0).text
        assert not isinstance(text, tuple)
        text = {**text, GUIDANCE: torch.tensor([1.0, 3.5])}
        with lora_file.merged(model, lora, parts=[denoiser]):
            expected = model.predict(noisy, times, text)
        with AdapterSlots(model, preset, 2, ranks) as slots:
            state = {f"{name}.down": down for name, (down, _) in weights.items()}
            state |= {f"{name}.up": up.T for name, (_, up) in weights.items()}
            for slot in range(2):
                slots.open(slot, ranks, alphas, seed=slot).load_state(state)
            slots.rows[denoiser].set([1, 1])
            slots.refresh()
            torch.testing.assert_close(model.predict(noisy, times, text), expected, rtol=1e-4, atol=1e-4)
