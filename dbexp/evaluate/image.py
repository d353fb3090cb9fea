"""Pictures as the metrics see them: identified by content, cut square, turned into tensors.

Transforms act on PIL images, never on tensors: resizing a tensor without antialiasing moves pixels by several grey
levels, and with them every score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dbexp.core.images import center_offset, read_rgb, short_side_resize


@dataclass(frozen=True)
class ImageFile:
    """A picture on disk and what must be known of it before any network sees it."""

    path: Path
    sha256: str
    """Of the file's bytes, hexadecimal; names the picture's features in a cache."""
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
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageFile(path, sha256, image.width, image.height, black=image.getbbox() is None)


def square(image: Image.Image, resize: int, crop: int) -> Image.Image:
    """Bring the shorter side to `resize` pixels (bicubic), then cut `crop` x `crop` from the centre; crop <= resize."""
    image = short_side_resize(image, resize, "bicubic")
    left, top = center_offset(image.width, crop), center_offset(image.height, crop)
    return image.crop((left, top, left + crop, top + crop))


def to_tensor(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """RGB picture -> float32 [3, H, W]: pixels scaled to [0, 1], then (x - mean) / std per channel."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
