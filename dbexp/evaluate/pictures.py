"""What an evaluation reads: pictures by the part they play, known by content, cut square, turned into tensors.

Transforms act on PIL images, never on tensors: resizing a tensor without antialiasing moves pixels by several grey
levels, and with them every score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dbexp.core.images import center_offset, image_hash, read_rgb, short_side_resize


@dataclass(frozen=True)
class Pictures:
    """Everything that `evaluate` reads: paths of PNG or JPEG files."""

    real: tuple[Path, ...]
    """R: photographs of the subject."""
    samples: Mapping[str, Sequence[Path]]
    """G: prompt, token filled in -> K paths in the order of their seeds; files may be missing, and are counted."""
    base_samples: Mapping[str, Sequence[Path]] | None
    """The same prompts and seeds with the adapter off; null: no base row."""
    class_images: tuple[Path, ...]
    """C: pictures of the class, adapter on."""
    class_images_base: tuple[Path, ...]
    """B: the same seeds, adapter off."""
    token: str
    class_noun: str
    groups: Mapping[str, str]
    """Prompt -> recontextualisation, accessory, property or other; a prompt without entry is other."""
    oracle_samples: Mapping[str, Sequence[Path]] | None = None
    """The true subject in the same prompts, where a drawn world has it; null: no oracle row."""

    def paths(self) -> tuple[Path, ...]:
        """All of them, in a fixed order."""
        by_prompt = (self.samples, self.base_samples or {}, self.oracle_samples or {})
        of_prompts = (path for samples in by_prompt for paths in samples.values() for path in paths)
        return (*self.real, *of_prompts, *self.class_images, *self.class_images_base)


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk and what must be known of it before any network sees it."""

    path: Path
    sha256: str
    """`image_hash` of the file, hexadecimal; names the picture's features in a cache."""
    width: int
    """Pixels, after the EXIF rotation."""
    height: int
    """Pixels, after the EXIF rotation."""
    black: bool
    """Every pixel is (0, 0, 0), as a safety checker leaves it."""


def inspect(path: Path) -> ImageFile:
    """Hash and decode one file.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file is no picture, or a damaged one.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    image = read_rgb(path)
    return ImageFile(path, image_hash(path), image.width, image.height, black=image.getbbox() is None)


def square(image: Image.Image, resize: int, crop: int) -> Image.Image:
    """Bring the shorter side to `resize` pixels (bicubic), then cut `crop` x `crop` from the centre; crop <= resize."""
    image = short_side_resize(image, resize, "bicubic")
    left, top = center_offset(image.width, crop), center_offset(image.height, crop)
    return image.crop((left, top, left + crop, top + crop))


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB picture -> float32 [3, H, W]: pixels scaled to [0, 1], then (x - mean) / std per channel."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
