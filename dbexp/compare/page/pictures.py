"""The pictures of a page: scaled down and packed into it within a budget of bytes, the most important ones first."""

from __future__ import annotations

import base64
import filecmp
import io
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dbexp.compare.contact_sheet import thumbnail
from dbexp.core.errors import ConfigError
from dbexp.core.images import read_rgb

log = logging.getLogger(__name__)

BUDGET = 16_000_000
"""Characters of all pictures together. With the plot library's 5 MB a page stays well under 25 MB."""
SIDES = (256, 192, 160, 128, 96)
"""Longest sides to choose from, in pixels."""
_QUALITY = 80  # of WebP
_PROBES = 16  # pictures whose size predicts that of all
_WORKERS = 4  # PIL lets go of the interpreter while it decodes and encodes


@dataclass(frozen=True)
class EmbeddedImages:
    """Pictures as data URIs.

    Attributes:
        uris: each once.
        indices: path -> index in `uris`, of those that are there.
        left_out: number of pictures that the budget had no room for.
        side: longest side in pixels.
    """

    uris: tuple[str, ...]
    indices: dict[Path, int]
    left_out: int
    side: int


def embed(paths: Iterable[Path], budget: int = BUDGET) -> EmbeddedImages:
    """Encode pictures, as large as the budget allows for all of them; what still does not fit is left out, last first.

    A file that is missing or damaged is left out too, and no reason to fail.

    Args:
        paths: most important first; hard links to one file count once.
        budget: characters of all data URIs together.
    """
    files = _distinct(paths)
    order = list(dict.fromkeys(files.values()))
    side = _side(order, budget)
    uris: list[str] = []
    index: dict[Path, int] = {}
    spent = left_out = 0
    with ThreadPoolExecutor(_WORKERS) as pool:
        for start in range(0, len(order), 64):  # by batches, so that no more is encoded than fits
            batch = order[start : start + 64]
            if spent >= budget:
                left_out += len(batch)
                continue
            for path, uri in zip(batch, pool.map(lambda path: encode(path, side), batch), strict=True):
                if uri is None:
                    continue
                if spent + len(uri) > budget:
                    spent, left_out = budget, left_out + 1
                    continue
                spent += len(uri)
                index[path] = len(uris)
                uris.append(uri)
    indices = {path: index[first] for path, first in files.items() if first in index}
    return EmbeddedImages(tuple(uris), indices, left_out, side)


def encode(path: Path, side: int) -> str | None:
    """A picture as a data URI: WebP, at most `side` pixels. None if it cannot be read."""
    try:
        image = read_rgb(path)
        small = thumbnail(image, side) if max(image.size) > side else image  # the page enlarges what is smaller
        buffer = io.BytesIO()
        small.save(buffer, "WEBP", quality=_QUALITY, method=2)
    except (OSError, ConfigError, Image.DecompressionBombError) as error:
        log.warning("%s: is left out of the page (%s)", path, error)
        return None
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _distinct(paths: Iterable[Path]) -> dict[Path, Path]:
    """Path -> the first path of the same file or of a copy of it (see `link`); what does not exist is dropped."""
    first: dict[tuple[str, int, int], Path] = {}
    files: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        try:
            state = path.stat()
        except OSError:
            continue
        file, like = ("file", state.st_dev, state.st_ino), ("copy", state.st_size, state.st_mtime_ns)
        twin = first.get(file)
        if twin is None and like in first and filecmp.cmp(first[like], path, shallow=False):
            twin = first[like]
        files[path] = first[file] = twin or path
        first.setdefault(like, path)
    return files


def _side(paths: Sequence[Path], budget: int) -> int:
    """The largest side at which all pictures are expected to fit."""
    probes = paths[:: max(1, len(paths) // _PROBES)][:_PROBES]
    for side in SIDES:
        sizes = [len(uri) for probe in probes if (uri := encode(probe, side)) is not None]
        if not sizes or sum(sizes) / len(sizes) * len(paths) <= budget:
            return side
    return SIDES[-1]
