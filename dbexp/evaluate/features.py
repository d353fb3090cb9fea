"""From files to vectors: each picture read once, embedded once per backbone, and cached by content."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from dbexp.core.device import in_halves, is_out_of_memory
from dbexp.core.errors import ConfigError, first_line
from dbexp.evaluate.backbones.base import ImageEncoder, ImageTextEncoder, PairwiseDistance
from dbexp.evaluate.feature_cache import FeatureCache, feature_key
from dbexp.evaluate.functional import FloatArray, normalise
from dbexp.evaluate.pictures import ImageFile, inspect

log = logging.getLogger(__name__)

Result = TypeVar("Result")

FAILED = "failed: "
"""Is in the reason of every column that a backbone's failure cost its value."""


@dataclass(frozen=True)
class Space:
    """Unit vectors of all pictures, or texts, under one backbone, or why there are none."""

    vectors: Mapping[str, FloatArray] = field(default_factory=dict)
    """sha256 of a file, or the text -> [D]."""
    failure: str | None = None
    """Why the backbone gave none; null if it did."""

    def of(self, files: Sequence[ImageFile]) -> FloatArray:
        """[N, D] unit vectors, in the order of `files` (N >= 1)."""
        return np.stack([self.vectors[file.sha256] for file in files])


def read_files(paths: Iterable[Path]) -> list[ImageFile | None]:
    """Inspect pictures; null for each that does not exist.

    Raises:
        ConfigError: naming every file that is no picture, or a damaged one.
    """
    files: list[ImageFile | None] = []
    problems: list[str] = []
    for path in paths:
        try:
            files.append(inspect(path))
        except FileNotFoundError:
            files.append(None)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(problems)
    return files


def embed(
    backbone: ImageEncoder, files: Iterable[ImageFile], batch_size: int, cache: FeatureCache | None
) -> dict[str, FloatArray]:
    """Unit vectors by sha256; equal files are embedded once.

    Raises:
        ConfigError: naming every picture whose embedding is zero or not finite.
    """
    # in the order of their hashes, so that batches do not depend on the order in which pictures are listed
    unique = {file.sha256: file for file in sorted(files, key=lambda file: file.sha256)}
    keys = {sha: feature_key(backbone.id, backbone.transform, sha) for sha in unique}
    raw = {sha: cache.get(key) if cache else None for sha, key in keys.items()}
    absent = [sha for sha, array in raw.items() if array is None]
    if absent:
        paths = [unique[sha].path for sha in absent]
        embedded = _in_batches(partial(backbone.embed_images, paths), len(paths), batch_size)
        raw.update(zip(absent, embedded.numpy(), strict=True))
    rows = np.array([raw[sha] for sha in unique])
    unit = normalise(rows, [file.path for file in unique.values()]) if unique else rows
    if cache:  # only now: what is kept is known to be sound
        cache.put_all({keys[sha]: np.asarray(raw[sha]) for sha in absent})
    return dict(zip(unique, unit, strict=True))


def embed_texts(backbone: ImageTextEncoder, texts: Sequence[str], cache: FeatureCache | None) -> dict[str, FloatArray]:
    """Unit vectors by text.

    Raises:
        ConfigError: naming every text whose embedding is zero or not finite.
    """
    hashes = {text: hashlib.sha256(text.encode()).hexdigest() for text in texts}
    keys = {text: feature_key(backbone.id, "text", sha256) for text, sha256 in hashes.items()}
    raw = {text: cache.get(key) if cache else None for text, key in keys.items()}
    absent = [text for text, array in raw.items() if array is None]
    if absent:
        raw.update(zip(absent, backbone.embed_texts(absent).numpy(), strict=True))
    if not texts:
        return {}
    unit = normalise(np.array([raw[text] for text in texts]), texts)
    if cache:
        cache.put_all({keys[text]: np.asarray(raw[text]) for text in absent})
    return dict(zip(texts, unit, strict=True))


def mean_distances(
    backbone: PairwiseDistance, files: Sequence[ImageFile], batch_size: int, cache: FeatureCache | None
) -> FloatArray:
    """[K] mean distance of each picture to the others, in the order of `files` (K >= 2).

    The result is cached for the set of pictures: their features, megabytes each, are not.
    """
    order = sorted(range(len(files)), key=lambda i: files[i].sha256)
    key = feature_key(backbone.id, backbone.transform, *(files[i].sha256 for i in order))
    ordered = cache.get(key) if cache else None
    if ordered is None:
        paths = [files[i].path for i in order]
        ordered = _in_batches(partial(backbone.mean_distances, paths), len(paths), batch_size)
        if not np.isfinite(ordered).all():
            names = ", ".join(str(files[i].path) for i in order)
            raise ConfigError(f"LPIPS among {names} is not finite; the backbone's weights or a picture are broken")
        if cache:
            cache.put(key, ordered)
    result = np.empty(len(files))
    result[order] = ordered
    return result


def _in_batches(compute: Callable[[int], Result], count: int, batch_size: int) -> Result:
    """What a backbone makes of so many pictures; fewer at once than was asked for where memory does not suffice."""
    return in_halves(compute, max(1, min(count, batch_size)), "evaluate.batch_size")


def attempt(name: str, compute: Callable[[], dict[str, FloatArray]]) -> Space:
    """Let one backbone fail (out of memory, say) without losing the columns of the others.

    Bad input (`ConfigError`) is not caught: it is the user's to mend.
    """
    try:
        return Space(compute())
    except (RuntimeError, MemoryError) as error:
        return Space(failure=_failure(name, error))


class Distances:
    """`mean_distances` of one backbone for many sets, which likewise fails alone, and then for good."""

    def __init__(self, backbone: PairwiseDistance, batch_size: int, cache: FeatureCache | None) -> None:
        self.backbone, self.batch_size, self.cache = backbone, batch_size, cache
        self.failure: str | None = None
        self._known: dict[tuple[str, ...], FloatArray] = {}

    def of(self, files: Sequence[ImageFile]) -> FloatArray | None:
        """[K] mean distance of each picture to the others; null for fewer than two, or once the backbone has failed."""
        if self.failure or len(files) < 2:
            return None
        key = tuple(file.sha256 for file in files)  # class images are asked for twice: for their mean, and one by one
        try:
            if key not in self._known:
                self._known[key] = mean_distances(self.backbone, files, self.batch_size, self.cache)
            return self._known[key]
        except (RuntimeError, MemoryError) as error:
            self.failure = _failure("lpips", error)
            return None


def _failure(name: str, error: BaseException) -> str:
    """Log the traceback, of what is no lack of memory; return the reason recorded for a failed backbone's columns."""
    fault = None if is_out_of_memory(error) else error
    log.error("%s failed: its columns have no values (%s)", name, first_line(error, typed=True), exc_info=fault)
    return f"{name} {FAILED}{first_line(error, typed=True)}"
