"""Latents of training pictures, encoded once: what a step needs and never changes is not computed at every step.

The VAE's posterior of each picture (and of each crop and mirror image of it) is kept; a step draws from it, or takes
its mean, as the recipe says. Afterwards nothing needs the VAE, which leaves memory before training starts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from dbexp.config.schema import TrainConfig
from dbexp.core.errors import ConfigError
from dbexp.core.files import write_atomic
from dbexp.core.hashing import seed_of
from dbexp.core.images import center_offset, image_hash, prepare, read_rgb, short_side_size
from dbexp.core.progress import progress
from dbexp.core.store import Store
from dbexp.models import Model

log = logging.getLogger(__name__)

_VERSION = 1
_PIXELS = 8 * 512 * 512
"""Most that go through the VAE at once on a GPU."""
_SQUARE_ENOUGH = 1 / 64
"""Crop `none` accepts pictures this close to square, which loses less than one latent column of 512 px."""


@dataclass(frozen=True)
class View:
    """One square cut out of a picture."""

    left: int | None
    top: int | None
    flip: bool


@dataclass(frozen=True)
class Bank:
    """Posteriors of a set of pictures, on the CPU.

    Attributes:
        mean, std: fp32 [V, C, h, w], normalised; all views of all pictures in a row.
        sizes: fp32 [V, 6], see `dbexp.models.SIZES`.
        first: the first view of each picture; view v of picture i is row first[i] + v.
    """

    mean: Tensor
    std: Tensor
    sizes: Tensor
    first: tuple[int, ...]

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self.first)

    def views(self, picture: int) -> int:
        """Number of views of a picture."""
        ends = (*self.first[1:], self.mean.shape[0])
        return ends[picture] - self.first[picture]


def views(width: int, height: int, train: TrainConfig, resolution: int, seed: int) -> tuple[View, ...]:
    """The squares of a picture that training may see.

    A picture that is square after the resize has only one place to cut, so random crops cost nothing there. Otherwise
    `train.crop_variants` places are drawn once: unlike cropping anew at every step, they can be encoded ahead.

    Args:
        width, height: of the picture in pixels.
        seed: of the places.
    """
    wide, high = short_side_size(width, height, resolution)
    spare = (wide - resolution, high - resolution)
    places: list[tuple[int | None, int | None]] = [(None, None)]
    if train.crop == "random" and max(spare) > 0:
        generator = torch.Generator().manual_seed(seed)
        draws = torch.rand(train.crop_variants, 2, generator=generator).tolist()
        places = [(int(x * (spare[0] + 1)), int(y * (spare[1] + 1))) for x, y in draws]
    return tuple(View(left, top, flip) for left, top in places for flip in ((False, True) if train.flip else (False,)))


def check_square(paths: Sequence[Path], train: TrainConfig) -> list[str]:
    """With crop `none`: one message for each picture that is not square, since a batch has one shape."""
    if train.crop != "none":
        return []
    messages = []
    for path in paths:
        width, height = read_rgb(path).size
        if abs(width - height) > _SQUARE_ENOUGH * min(width, height):
            messages.append(f"train.crop=none: {path.name} is {width} x {height} px, not square; use train.crop=center")
    return messages


def encode(
    paths: Sequence[Path], model: Model, train: TrainConfig, resolution: int, seed: int, store: Store, title: str
) -> Bank:
    """Posteriors of pictures, from the store or from the VAE.

    On a CPU one picture at a time: its latents then do not depend on which others are trained on. Elsewhere, where that
    costs most of the time, several whose pixels are those of eight at 512 x 512.

    Args:
        paths: pictures.
        seed: of random crops.
        title: what the progress bar calls them.

    Raises:
        ConfigError: a picture does not fit `train.crop`.
    """
    if problems := check_square(paths, train):
        raise ConfigError(problems)
    hashes = [image_hash(path) for path in paths]
    inputs: dict[str, Any] = {
        "version": _VERSION,
        "model": model.identity,
        "dtype": str(model.dtype),
        "images": hashes,
        "resolution": resolution,
        "interpolation": train.interpolation,
        "crop": [train.crop, train.crop_variants, seed] if train.crop == "random" else "center",
        "flip": train.flip,
    }

    def make(folder: Path) -> None:
        means, stds, sizes, counts = list[Tensor](), list[Tensor](), [], []
        pending: list[Tensor] = []
        most = 1 if model.device.type == "cpu" else max(1, _PIXELS // resolution**2)

        def empty() -> None:
            for start in range(0, len(pending), most):
                mean, std = model.encode_images(torch.stack(pending[start : start + most]))
                means.append(mean.cpu())
                stds.append(std.cpu())
            pending.clear()

        with progress(f"encode {title}", len(paths)) as bar:
            for path, digest in zip(paths, hashes, strict=True):
                image = read_rgb(path)
                squares = views(image.width, image.height, train, resolution, seed_of(seed, "crop", digest))
                for view in squares:
                    pixels = prepare(image, resolution, train.interpolation, view.left, view.top, view.flip)
                    pending.append(torch.from_numpy(pixels))
                    sizes.append(_sizes(image.width, image.height, view, resolution))
                counts.append(len(squares))
                if len(pending) >= most:
                    empty()
                bar.advance()
            empty()
        first = torch.tensor([0, *counts[:-1]]).cumsum(0)
        tensors = {"mean": torch.cat(means), "std": torch.cat(stds), "sizes": torch.tensor(sizes), "first": first}
        write_atomic(folder / "latents.safetensors", safetensors.torch.save(tensors))

    folder = store.get("latents", inputs, make)
    tensors = safetensors.torch.load_file(folder / "latents.safetensors")
    first = tuple(int(i) for i in tensors["first"])
    # entries of before sizes were noted are of Stable Diffusion, which reads none
    sizes = tensors.get("sizes", torch.zeros(len(tensors["mean"]), 6))
    return Bank(tensors["mean"], tensors["std"], sizes, first)


def _sizes(width: int, height: int, view: View, resolution: int) -> list[float]:
    """Of the picture, and of the square that is cut out of it once it is resized and, maybe, mirrored."""
    wide, high = short_side_size(width, height, resolution)
    left = center_offset(wide, resolution) if view.left is None else view.left
    top = center_offset(high, resolution) if view.top is None else view.top
    return [height, width, top, wide - resolution - left if view.flip else left, resolution, resolution]
