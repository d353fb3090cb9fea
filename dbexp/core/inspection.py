"""What a person should know of a folder of pictures before hours are spent on them."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from dbexp.core.colour import Conversion
from dbexp.core.errors import ConfigError, listed
from dbexp.core.images import READABLE, REMEMBERED, file_state, is_image, read_converted, read_rgb
from dbexp.core.progress import progress

MANY = 100
"""More pictures than this are read with a bar, and earn a warning; the paper's subjects have 4 to 6."""
OBLONG = 1.5
"""Longer sides than this many short sides earn a warning: a center crop then loses more than a third."""
_CAPTIONS = (".txt", ".caption", ".json")
_LITTER = ("Thumbs.db", "desktop.ini", "Icon\r")
_MOST = 12
"""Names in a message."""


@dataclass(frozen=True)
class Examined:
    """What can be said of an image that was read."""

    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    pixels: str
    """sha256 of the converted pixels, hexadecimal: equal for a copy saved in another lossless format."""
    conversion: Conversion | None
    """How its colours came to sRGB; None: they were sRGB."""
    remarks: tuple[str, ...]
    """What the decoder found odd, and read all the same."""


def examine(path: Path) -> Examined:
    """Read an image and describe it, once for as long as its file does not change.

    Raises:
        ConfigError: as `read_rgb`.
    """
    try:
        state = file_state(path)
    except OSError:
        read_rgb(path)  # says why; a failure is never remembered
        state = ()
    return _examine_unchanged(path, *state)


@lru_cache(maxsize=REMEMBERED)
def _examine_unchanged(path: Path, *_state: int) -> Examined:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image, conversion = read_converted(path)
    remarks = [str(warning.message) for warning in caught if warning.category is not Image.DecompressionBombWarning]
    pixels = hashlib.sha256(image.tobytes()).hexdigest()
    return Examined(image.width, image.height, pixels, conversion, tuple(dict.fromkeys(remarks)))


def image_problems(paths: Sequence[Path], parameter: str = "") -> list[str]:
    """Why some pictures cannot be used, one message each; all are read for it.

    Args:
        paths: of the pictures.
        parameter: begins each message, such as `prior.path=FOLDER`.
    """
    problems: list[str] = []
    with progress("read pictures", len(paths)) if len(paths) > MANY else nullcontext() as bar:
        for path in paths:
            try:
                examine(path)
            except ConfigError as error:
                problems += [f"{parameter}: {problem}" if parameter else problem for problem in error.problems]
            if bar is not None:
                bar.advance()
    return problems


def image_warnings(paths: Iterable[Path], resolution: int) -> list[str]:
    """One sentence for each kind of fault of pictures that can be read, or of what was done about it.

    Too small, far from square, colours converted, colour profiles that cannot be used, what else the decoder found odd,
    the same picture twice.

    Args:
        paths: of the pictures.
        resolution: side of a training image in pixels.
    """
    small, oblong, colours, odd, twins = (dict[str, list[str]]() for _ in range(5))
    for path in paths:
        image, name = examine(path), path.name
        size = f"{name} ({image.width} x {image.height})"
        if min(image.width, image.height) < resolution:
            small.setdefault(f"smaller than the resolution of {resolution} px and therefore enlarged", []).append(size)
        if max(image.width, image.height) > OBLONG * min(image.width, image.height):
            oblong.setdefault("far from square, so a crop loses much of the picture", []).append(size)
        if image.conversion is not None:
            colours.setdefault(_colours(image.conversion), []).append(name)
        for remark in image.remarks:
            odd.setdefault(f"read, though something is odd ({remark})", []).append(name)
        twins.setdefault(f"{image.width} {image.pixels}", []).append(name)
    sentences = [f"{kind}: {_names(names)}" for kind, names in (small | oblong | colours | odd).items()]
    repeated = (names for names in twins.values() if len(names) > 1)
    return sentences + [f"the same picture {len(names)} times: {_names(names)}" for names in repeated]


def _colours(conversion: Conversion) -> str:
    if conversion.fault:
        return f"colours taken for sRGB, since {conversion.fault}"
    return f"colours converted to sRGB from {conversion.name}"


def unread_warnings(folder: Path, paths: Sequence[Path], prompt: str) -> list[str]:
    """One sentence for each kind of file that lies beside pictures, might be meant to be read, and is not.

    Args:
        folder: of the pictures; what is hidden in it, or left there by every system, does not count.
        paths: the pictures that are read.
        prompt: the parameter with the caption of all of them.
    """
    names = {name for path in paths for name in (path.stem, path.name)}
    others = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and path.name not in _LITTER]
    captions, folders, files = [], [], []
    for path in others:
        if path.is_dir():
            folders += [f"{path.name}/"] if has_images(path) else []
        elif path.suffix.lower() in _CAPTIONS and path.stem in names:
            captions.append(path.name)
        elif not is_image(path):
            files.append(path.name)
    kinds = {
        f"captions are not read, since every picture has the one of {prompt}": captions,
        "pictures one level down are not read": folders,
        f"not read, since only {listed(READABLE)} are pictures": files,
    }
    return [f"{kind}: {_names(members)}" for kind, members in kinds.items() if members]


def has_images(folder: Path) -> bool:
    """Whether there is a picture in a folder that may be listed."""
    try:
        return any(map(is_image, folder.iterdir()))
    except OSError:
        return False


def _names(names: Sequence[str]) -> str:
    return listed(names, _MOST)
