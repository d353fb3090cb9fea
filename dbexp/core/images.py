"""Photographs in, upright RGB pictures and training arrays out; every resize is PIL's.

People keep what their camera, phone or browser gave them: rotated by EXIF, CMYK, 16 bits deep, transparent, cut short
by a failed copy. Whatever can be shown is read as a viewer would show it; everything else fails with the file's name.
"""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dbexp.core.errors import ConfigError

log = logging.getLogger(__name__)

# HEIC is here so that a phone's pictures are refused by name, not passed over in silence.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif")
)

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# Pillow's decoders raise any of these on damaged data, depending on the format and on where the damage is.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def is_image(path: Path) -> bool:
    """Whether a name is that of a picture: a known suffix in any case, not hidden, not a folder.

    The file is not opened, and a broken link counts: reading it then says what is wrong.
    """
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()


def image_files(folder: Path) -> list[Path]:
    """The pictures directly in a folder, sorted by file name; anything else in it is passed over.

    Raises:
        ConfigError: the folder is missing, is a file or may not be listed.
    """
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
        pictures = [path for path in entries if is_image(path)]
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed ({error.strerror})") from error
    for path in sorted(set(entries) - set(pictures)):
        log.debug("%s: not a picture, ignored", path)
    return pictures


def read_rgb(path: Path) -> Image.Image:
    """Decode a picture completely and close its file.

    EXIF rotation is applied, 16-bit grey is scaled to 8 bits, transparency is composited on white, and palettes, grey
    and CMYK become RGB. Of an animation the first frame counts.

    Returns:
        An upright picture of mode RGB, detached from its file.

    Raises:
        ConfigError: naming the file, when it is missing, unreadable, cut short or of no known format.
    """
    try:
        with path.open("rb") as file:
            try:
                with Image.open(file) as image:
                    image.load()
                    return _upright_rgb(image, path)
            except ConfigError:
                raise
            except _DAMAGE as error:
                file.seek(0)
                raise ConfigError(f"{path}: {_damage(file.read(12), error)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {_unreachable(path, error)}") from error


def short_side_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height once the short side has `size` pixels; the long side is rounded down, as torchvision does."""
    if width <= height:
        return size, size * height // width
    return size * width // height, size


def short_side_resize(image: Image.Image, size: int, interpolation: str) -> Image.Image:
    """Scale a picture, keeping its proportions, until its short side has `size` pixels.

    PIL widens its kernel when it shrinks a picture, so nothing aliases.

    Args:
        image: of any size.
        size: pixels of the short side of the result.
        interpolation: bilinear, bicubic or lanczos.

    Raises:
        KeyError: unknown interpolation.
    """
    target = short_side_size(image.width, image.height, size)
    return image if image.size == target else image.resize(target, _RESAMPLING[interpolation])


def center_offset(length: int, size: int) -> int:
    """First pixel of a centered window of `size` in `length` pixels, rounded as torchvision's CenterCrop does."""
    return round((length - size) / 2)


def prepare(
    image: Image.Image,
    size: int,
    interpolation: str,
    left: int | None = None,
    top: int | None = None,
    flip: bool = False,
) -> NDArray[np.float32]:
    """Resize the short side, cut out a square and scale it for the VAE.

    Args:
        image: RGB, as `read_rgb` gives it.
        size: side of the square in pixels.
        interpolation: of the resize: bilinear, bicubic or lanczos.
        left: first column of the square in the resized picture (see `short_side_size`); None: centered.
        top: first row, likewise.
        flip: mirror the square left to right.

    Returns:
        float32 [3, size, size] in [-1, 1], contiguous.

    Raises:
        ValueError: the square does not lie within the resized picture.
    """
    resized = short_side_resize(image, size, interpolation)
    left = center_offset(resized.width, size) if left is None else left
    top = center_offset(resized.height, size) if top is None else top
    if not (0 <= left <= resized.width - size and 0 <= top <= resized.height - size):
        raise ValueError(f"a square of {size} px at ({left}, {top}) leaves the picture of {resized.size} px")
    square = resized.crop((left, top, left + size, top + size))
    if flip:
        square = ImageOps.mirror(square)
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / 127.5 - 1)


def _upright_rgb(image: Image.Image, path: Path) -> Image.Image:
    upright = ImageOps.exif_transpose(image)
    # Older versions of Pillow open 16-bit PNG files as 32-bit integers.
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PNG"):
        return _eight_bits(upright).convert("RGB")
    if upright.mode in ("I", "F"):
        raise ConfigError(
            f"{path}: its pixels are 32-bit numbers without a known range; convert it to an 8 or 16-bit PNG"
        )
    if upright.has_transparency_data:
        colours = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return upright.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Map 0..65535 to 0..255 by rounding; Pillow's own conversion would clip instead."""
    deep = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((deep + 128) // 257).astype(np.uint8))


def _damage(head: bytes, error: BaseException) -> str:
    if not head:
        return "the file is empty"
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return "is a HEIC picture, which cannot be read here; convert it to JPEG or PNG"
    if isinstance(error, UnidentifiedImageError):
        return "is not a picture of a known format, or is damaged; remove it or make it again"
    if isinstance(error, Image.DecompressionBombError):
        return f"is too large to decode ({error}); scale it down"
    # Formats word it differently: "image file is truncated", "Truncated File Read", "unrecognized data stream".
    if "truncated" in str(error).lower():
        return f"is truncated ({error}); copy it again or remove it"
    return f"cannot be decoded ({error}); copy it again or remove it"


def _unreachable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is a broken link" if path.is_symlink() else "there is no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not a picture"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    return f"cannot be read ({error.strerror})"
