"""Pictures of small full grids, whose values a function makes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas


def pictures(value: Callable[..., float], subjects: int = 1, **levels: int) -> pandas.DataFrame:
    """A full grid: a value of (rank, weight, seed, prompt, image, subject), numbered from 0, for each picture."""
    sizes = {"rank": 2, "weight": 1, "seed": 1, "prompt": 1, "image": 1} | levels | {"subject": subjects}
    rows = [dict(zip(sizes, indices, strict=True)) for indices in product(*(range(n) for n in sizes.values()))]
    return pandas.DataFrame([row | {"value": value(**row)} for row in rows])


def noisy(**sizes: int) -> pandas.DataFrame:
    """A grid of noise, to which rank adds 0.2."""
    generator = np.random.default_rng(0)
    return pictures(lambda rank, **_: 0.2 * rank + float(generator.normal(0, 0.05)), **sizes)
