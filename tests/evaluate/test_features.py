"""Distances keep the order of their pictures, with a cache and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dbexp.evaluate.feature_cache import DiskCache
from dbexp.evaluate.features import mean_distances
from dbexp.evaluate.functional import FloatArray
from dbexp.evaluate.pictures import ImageFile


class Lengths:
    """The distance of two pictures is the difference of the lengths of their names."""

    id, transform, random = "lengths", "1", False

    def mean_distances(self, paths: Sequence[Path], batch_size: int = 32) -> FloatArray:
        lengths = np.array([float(len(path.name)) for path in paths])
        return np.asarray(np.abs(lengths[:, None] - lengths).sum(axis=1) / (len(lengths) - 1))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_each_picture_gets_its_own_distance_whatever_the_order(tmp_path: Path, order: tuple[int, ...]) -> None:
    names = {0: ("a" * 1, "ff", 7.0), 1: ("b" * 3, "00", 6.0), 2: ("c" * 13, "88", 11.0)}
    files = [ImageFile(Path(names[i][0]), names[i][1], 8, 8, black=False) for i in order]
    expected = [names[i][2] for i in order]
    cache = DiskCache(tmp_path)
    for _ in range(2):  # computed, then remembered
        np.testing.assert_array_equal(mean_distances(Lengths(), files, 32, cache), expected)
    np.testing.assert_array_equal(mean_distances(Lengths(), files[::-1], 32, cache), expected[::-1])
