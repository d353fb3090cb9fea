"""Small things that many tests are built from: a tiny model, noise for pictures, and trainings on them."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dbexp.config.schema import (
    Config,
    DatasetConfig,
    LoraConfig,
    LrScheduleConfig,
    ModelConfig,
    PriorConfig,
    SeedsConfig,
    TrainConfig,
)
from dbexp.config.values import plain
from dbexp.core.store import Store
from dbexp.models import Batch, Model, random_weights, sd
from dbexp.models.random_weights import TINY, Size
from dbexp.train import adapter as lora
from dbexp.train.data import Training

PROMPT = "a photo of sks dog"
CLASS_PROMPT = "a photo of dog"


@lru_cache(maxsize=1)
def scratch() -> Path:
    """A folder that lives as long as the tests do."""
    folder = Path(tempfile.mkdtemp(prefix="dbexp-tests-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def checkpoint(size: Size = TINY, seed: int = 0) -> Path:
    """The pipeline folder of a random-weight model; to be read only."""
    folder = scratch() / f"model-{abs(hash(size))}-{seed}"
    return folder if folder.exists() else random_weights.build(folder, size, seed)


def model(size: Size = TINY, precision: str = "fp32") -> Model:
    """That model, on the CPU: one and the same object for all tests."""
    return _model(size, precision)


@lru_cache(maxsize=8)
def _model(size: Size, precision: str) -> Model:
    return sd.load(model_config(size, precision), Store(scratch() / "hashes"))


def model_config(size: Size = TINY, precision: str = "fp32", **others: Any) -> ModelConfig:
    """Settings of that model."""
    settings: dict[str, Any] = {
        "path": str(checkpoint(size)),
        "resolution": size.resolution,
        "precision": precision,
        "device": "cpu",
    }
    return ModelConfig(name="tiny", **settings | others)


def pictures(count: int = 4, seed: int = 0, width: int = 40, height: int = 40) -> tuple[Path, ...]:
    """PNG files of noise; another seed gives other pictures."""
    folder = scratch() / f"pictures-{count}-{seed}-{width}-{height}"
    paths = tuple(folder / f"{number}.png" for number in range(count))
    if not folder.exists():
        folder.mkdir()
        generator = np.random.default_rng(seed)
        for path in paths:
            Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return paths


def config(
    *,
    weight: float = 1.0,
    seed: int = 1,
    size: Size = TINY,
    precision: str = "fp32",
    adapters: Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    **train: Any,
) -> Config:
    """A run of few steps on the tiny model.

    Args:
        weight: of the prior.
        seed: of everything.
        adapters, schedule: fields of LoraConfig and LrScheduleConfig.
        train: fields of TrainConfig.
    """
    return Config(
        model=model_config(size, precision),
        dataset=DatasetConfig(name="noise", path="unused", class_noun="dog", live=True),
        lora=LoraConfig(**{"rank": 4, **(adapters or {})}),
        lr_schedule=LrScheduleConfig(**(schedule or {})),
        prior=PriorConfig(weight=weight),
        train=TrainConfig(**{"steps": 6, "lr": 1e-3, "checkpoint_every": 0, **train}),
        seeds=SeedsConfig(init=seed, data=seed, noise=seed),
    )


def training(
    *, images: tuple[Path, ...] | None = None, class_images: tuple[Path, ...] | None = None, **settings: Any
) -> Training:
    """What that run trains.

    Args:
        images, class_images: null: 4 and 6 pictures of noise; without a prior there are no class images.
        settings: see `config`.
    """
    made = config(**settings)
    classes = (class_images or pictures(6, seed=1)) if made.prior.weight else ()
    return Training(
        images=images or pictures(),
        prompt=PROMPT,
        class_images=classes,
        class_prompt=CLASS_PROMPT,
        prior_weight=made.prior.weight,
        resolution=made.model.resolution,
        cfg=made.train,
        lora=made.lora,
        lr_schedule=made.lr_schedule,
        seeds=made.seeds,
        record=plain(made),
    )


def adapter(
    base: Model, ranks: Mapping[str, int], alphas: Mapping[str, float], *, strength: float = 0.5
) -> lora.Adapter:
    """An adapter whose B is not zero, as after a training that changed much."""
    with lora.AdapterSlots(base, "attention", 1, ranks) as lanes:
        made = lanes.open(0, ranks, alphas, seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for up in made.up.values():
            up.copy_(strength * torch.randn(up.shape, generator=generator))
    return made


def picture(
    base: Model,
    prompt: str = PROMPT,
    *,
    sampler: str | None = None,
    seed: int = 0,
    steps: int = 3,
    guidance: float = 3.0,
    side: int = 32,
) -> NDArray[np.int64]:
    """Pixels 0..255 of the picture that a model draws now, [side, side, 3]."""
    with torch.no_grad():
        text, negative = base.encode(base.tokenize([prompt])), base.unconditional("")
    batch = Batch(text, negative if base.guided(guidance) else None, (seed,), steps, guidance, side, side)
    (image,) = base.draw(base.pipeline(sampler), batch)
    pixels: NDArray[np.int64] = (image * 255).round().astype(np.int64)
    return pixels


def tensors(path: Path) -> dict[str, Tensor]:
    """What a LoRA file holds."""
    return safetensors.torch.load_file(path)


def overrides(store: Path, weights: Path | None = None, photographs: Path | None = None) -> list[str]:
    """What makes a whole run a matter of a second, as one would say it on the command line.

    Args:
        store: where it keeps what it computes.
        weights, photographs: folders; None: the tiny model and four pictures of noise.
    """
    return [
        f"model.path={weights or checkpoint()}",
        "model.resolution=32",
        "dataset=folder",
        f"dataset.path={photographs or pictures()[0].parent}",
        "dataset.class_noun=dog",
        "dataset.live=true",
        "lora=attention",
        "lr_schedule=constant",
        "train.steps=4",
        'sample.prompts=["a {token} {class} in the snow","a red {token} {class}"]',
        "sample.images_per_prompt=2",
        "sample.steps=2",
        "sample.guidance_scale=3.0",
        f"store={store}",
        "tracking.mode=disabled",
    ]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
