"""Photographs in, upright sRGB images and training arrays out; every resize is PIL's.

People keep what their camera, phone or browser gave them: rotated by EXIF, with a colour profile, CMYK, 16 bits deep,
transparent, cut short by a failed copy. Whatever can be shown is read as a viewer would show it; everything else fails
with the file's name, before anything waits for it or takes up memory.
"""

from __future__ import annotations

import hashlib
import logging
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from dbexp.core import colour
from dbexp.core.colour import Conversion
from dbexp.core.errors import ConfigError
from dbexp.core.hashing import file_hash

log = logging.getLogger(__name__)

# They name no file. `dbexp.core.inspection` collects them, for somebody to be told of once.
warnings.filterwarnings("ignore", module=r"PIL\.")

MOST_PIXELS = 110_000_000
"""Of an image; larger ones are refused by their header. The largest cameras in use have 108 million, a decoded image of
that size takes 0.3 GB, and no model trains on more than one in fifty of them."""

READABLE = (".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# HEIC is here so that a phone's pictures are refused by name, not passed over in silence.
SUFFIXES = frozenset((*READABLE, ".heic", ".heif"))

REMEMBERED = 1 << 17
"""Images of which a process remembers what it saw."""

# What is opened at all: Pillow's list ends in formats that start other programs (EPS).
_FORMATS = ("JPEG", "PNG", "GIF", "TIFF", "BMP", "DIB", "WEBP", "AVIF")

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
    """The images directly in a folder, sorted by file name.

    Raises:
        ConfigError: the folder is missing, is a file or may not be listed.
    """
    try:
        return sorted((path for path in folder.iterdir() if is_image(path)), key=lambda path: path.name)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed ({error.strerror})") from error


def read_rgb(path: Path) -> Image.Image:
    """Decode an image completely and close its file.

    EXIF rotation is applied, colours are converted to sRGB (`dbexp.core.colour`), 16-bit gray is scaled to 8 bits,
    transparency is composited on white, and palettes, gray and CMYK become RGB. Of an animation the first frame counts.

    Returns:
        An upright image of mode RGB, detached from its file.

    Raises:
        ConfigError: naming the file, when it is missing, no regular file, unreadable, cut short, of no known format, or
            of more than `MOST_PIXELS`.
    """
    return read_converted(path)[0]


def read_converted(path: Path) -> tuple[Image.Image, Conversion | None]:
    """What `read_rgb` gives, and how its colours came to sRGB; None where nothing had to be done."""
    with _opened(path) as (image, conversion):
        image.load()
        return _upright_rgb(image, path, conversion), conversion


def image_hash(path: Path) -> str:
    """What an image is known by wherever its pixels matter: the sha256 of its file, hexadecimal.

    Converted colours are part of it: what was computed from such a file before it was converted is not found again.

    Raises:
        OSError: the file cannot be read.
    """
    return _hash_unchanged(path, *file_state(path))


# A sweep asks for the same few images again and again.
@lru_cache(maxsize=REMEMBERED)
def _hash_unchanged(path: Path, *_state: int) -> str:
    digest = file_hash(path)
    try:
        with _opened(path) as (_, conversion):
            pass
    except ConfigError:  # whoever reads it says why
        return digest
    if conversion is None or conversion.transform is None:
        return digest
    return hashlib.sha256(f"{digest} to sRGB {colour.VERSION}".encode()).hexdigest()


def file_state(path: Path) -> tuple[int, ...]:
    """What changes whenever the content of a file does, short of somebody who sets back its clock.

    Raises:
        OSError: there is no file, or it may not be looked at.
    """
    status = path.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Image.Image, Conversion | None]]:
    """An image whose header was read, and what its colours need; whatever goes wrong in the block names the file."""
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode):
            raise ConfigError(f"{path}: {_irregular(mode)}")
        with path.open("rb") as file:
            try:
                head = file.read(colour.HEAD_BYTES)
                file.seek(0)
                with Image.open(file, formats=_FORMATS) as image:
                    if image.width * image.height > MOST_PIXELS:
                        raise ConfigError(f"{path}: {_large(f'{image.width} x {image.height} pixels')}")
                    yield image, colour.conversion(image, head)
            except ConfigError:
                raise
            except _DAMAGE as error:
                raise ConfigError(f"{path}: {_damage(head[:12], error)}") from error
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
        raise ValueError(f"a square of {size} px at ({left}, {top}) leaves the image of {resized.size} px")
    square = resized.crop((left, top, left + size, top + size))
    if flip:
        square = ImageOps.mirror(square)
    pixels = np.asarray(square, dtype=np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / 127.5 - 1)


def _upright_rgb(image: Image.Image, path: Path, conversion: Conversion | None) -> Image.Image:
    if conversion is not None and conversion.hdr:
        raise ConfigError(
            f"{path}: is an HDR image ({conversion.hdr}), brighter than sRGB can show; export an ordinary (SDR) one"
        )
    upright = ImageOps.exif_transpose(image)
    # Older versions of Pillow open 16-bit PNG files as 32-bit integers.
    if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PNG"):
        upright = _eight_bits(upright)
    if upright.mode in ("I", "F"):
        raise ConfigError(
            f"{path}: its pixels are 32-bit numbers without a known range; convert it to an 8 or 16-bit PNG"
        )
    if conversion is not None and conversion.transform is not None:
        upright = conversion.apply(upright)
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
        return "is a HEIC image, which cannot be read here; convert it to JPEG or PNG"
    if isinstance(error, (UnidentifiedImageError, KeyError)):  # KeyError: a Pillow that was built without a format
        return "is not an image of a known format, or is damaged; remove it or make it again"
    if isinstance(error, Image.DecompressionBombError):  # Pillow has a limit too, above ours
        return _large("a huge number of pixels")
    # Formats word it differently: "image file is truncated", "Truncated File Read", "unrecognized data stream".
    if "truncated" in str(error).lower():
        return f"is truncated ({error}); copy it again or remove it"
    return f"cannot be decoded ({error}); copy it again or remove it"


def _large(size: str) -> str:
    return f"is too large ({size}; at most {MOST_PIXELS // 10**6} million are read); scale it down"


def _irregular(mode: int) -> str:
    """What a thing is that has a name but no content of its own: reading it could wait for ever."""
    if stat.S_ISDIR(mode):
        return "is a folder, not an image"
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return f"is {kinds.get(stat.S_IFMT(mode), 'no regular file')}, not a file; remove it"


def _unreachable(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is a broken link" if path.is_symlink() else "there is no such file"
    if isinstance(error, PermissionError):
        return "may not be read (permission denied)"
    return f"cannot be read ({error.strerror})"
