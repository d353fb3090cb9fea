"""The formulas of the metrics (metric_version 1), free of networks and files.

The five columns are those of DreamBooth (Ruiz et al., CVPR 2023, arXiv 2208.12242, sections 4.1 and 4.3). Embeddings
come in as [N, D] arrays, one row per picture or text; everything is computed in float64.

What is averaged over what: columns with one value per picture (`dino`, `clip_i`, `clip_t`, ...) are means over all
pictures; `div` has one value per prompt and is the mean over prompts. Intervals are percentile bootstraps (Efron,
1979): prompts are resampled, all pictures of a prompt together; columns without prompts (`pres`, `div_prior`, `*_real`)
resample their pictures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dbexp.core.errors import ConfigError

METRIC_VERSION = 1

FloatArray: TypeAlias = NDArray[np.float64]
IntArray: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Resampling:
    """How intervals are made; equal settings draw equal resamples, so columns and runs are comparable."""

    resamples: int = 1000
    """Number of bootstrap resamples."""
    confidence: float = 0.95
    """Coverage, in (0, 1)."""
    seed: int = 0
    """Seed of the draws."""


@dataclass(frozen=True)
class Estimate:
    """A value, the interval around it, and why there is none when it is NaN."""

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    """What was averaged: prompts, or pictures for the columns without prompts."""
    reason: str | None = None
    """Why the value is NaN; null when it is not."""

    @classmethod
    def missing(cls, reason: str) -> Estimate:
        """NaN with its reason."""
        return cls(math.nan, reason=reason)


# ---------------------------------------------------------------------------------------------------- similarities


def normalise(embeddings: ArrayLike, names: Sequence[object]) -> FloatArray:
    """Rows scaled to unit length, [N, D] float64.

    Args:
        embeddings: [N, D] in any float dtype.
        names: N names for the message.

    Raises:
        ConfigError: naming every row that is NaN, infinite or zero.
    """
    rows = np.asarray(embeddings, dtype=np.float64)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    problems = [
        f"{name}: its embedding is {'zero' if norm == 0 else 'not finite'}; the weights or the picture are broken"
        for name, norm in zip(names, norms, strict=True)
        if norm == 0 or not math.isfinite(norm)
    ]
    if problems:
        raise ConfigError(problems)
    return np.asarray(rows / norms[:, None])


def mean_to_others(unit: FloatArray) -> FloatArray:
    """Mean cosine of each row to the other rows: [N, D] unit vectors, N >= 2 -> [N].

    In linear time, from <x_i, sum_j x_j> = 1 + sum over j != i of <x_i, x_j>; its mean is the off-diagonal mean
    (N^2 |mean|^2 - N) / (N (N - 1)).
    """
    return np.asarray((unit @ unit.sum(axis=0) - 1) / (len(unit) - 1))


def copy_threshold(real: FloatArray) -> float:
    """Largest cosine of two different real images, [R, D] unit vectors; NaN for fewer than two."""
    if len(real) < 2:
        return math.nan
    similarities = real @ real.T
    np.fill_diagonal(similarities, -np.inf)
    return float(similarities.max())


def mean_squared_distances(vectors: Iterable[NDArray[np.floating]]) -> FloatArray:
    """Mean squared Euclidean distance of each vector to the others, in O(K) instead of O(K^2) steps.

    sum_j |x_i - x_j|^2 = K |x_i|^2 + sum_j |x_j|^2 - 2 <x_i, sum_j x_j>. The mean of the result is twice the
    unbiased variance summed over dimensions; for LPIPS embeddings it is the mean pairwise LPIPS.

    Args:
        vectors: K >= 2 arrays [D], iterated twice; at most one is held at a time.
    """
    squares: list[float] = []
    total: FloatArray | None = None
    for vector in vectors:
        exact = vector.astype(np.float64)
        squares.append(float(exact @ exact))
        total = exact if total is None else total + exact
    assert total is not None and len(squares) >= 2, "a distance needs two vectors"
    dots = np.array([float(vector.astype(np.float64) @ total) for vector in vectors])
    lengths = np.array(squares)
    # rounding may leave duplicates a hair below zero
    return np.asarray(np.maximum((len(lengths) * lengths + lengths.sum() - 2 * dots) / (len(lengths) - 1), 0.0))


def without_token(prompt: str, token: str) -> str:
    """The prompt with every whole-word occurrence of the token removed and runs of spaces collapsed.

    A prompt that lacks the token comes back as it is.
    """
    pattern = re.compile(rf"(?<!\w){re.escape(token)}(?!\w)")
    if not token or not pattern.search(prompt):
        return prompt
    return " ".join(pattern.sub(" ", prompt).split())


# ------------------------------------------------------------------------------------------- means and intervals


def bootstrap(statistic: Callable[[IntArray], FloatArray], units: int, how: Resampling) -> tuple[float, float]:
    """Percentile interval of a statistic under resampling of its units.

    Args:
        statistic: [resamples, units] indices of drawn units -> [resamples] values; NaN where a draw has none.
        units: number of independent units. One unit says nothing about spread: (NaN, NaN).
        how: number of resamples, coverage, seed.
    """
    if units < 2:
        return math.nan, math.nan
    draws = statistic(np.random.default_rng(how.seed).integers(units, size=(how.resamples, units)))
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return math.nan, math.nan
    tail = (1 - how.confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def estimate_mean(
    values: ArrayLike, how: Resampling, *, counts: ArrayLike | None = None, reason: str = "no values"
) -> Estimate:
    """Weighted mean and its interval.

    Args:
        values: [N], one mean per prompt (or one value per picture); NaN: this one has none and is left out.
        how: of the interval; the N units are resampled.
        counts: [N] pictures behind each value, so that the result is the mean over pictures; null: all alike.
        reason: recorded when nothing is left to average.
    """
    means = np.asarray(values, dtype=np.float64)
    weights = np.ones_like(means) if counts is None else np.asarray(counts, dtype=np.float64)
    valid = np.isfinite(means) & (weights > 0)
    means, weights = means[valid], weights[valid]
    if not len(means):
        return Estimate.missing(reason)

    def statistic(indices: IntArray) -> FloatArray:
        return np.asarray((means * weights)[indices].sum(axis=1) / weights[indices].sum(axis=1))

    low, high = bootstrap(statistic, len(means), how)
    return Estimate(float((means * weights).sum() / weights.sum()), low, high, len(means))


def estimate_pairs(means_to_others: FloatArray, how: Resampling) -> Estimate:
    """Mean over all pairs of N items, given each item's mean over its pairs.

    Resampled items would meet themselves, at distance 0, and bias the interval; so the bootstrap acts on the
    first-order (Hajek) projection of the U-statistic, U + 2 (mean of resampled h_i - U) (Hoeffding, 1948). Two items
    say nothing about spread: the interval is NaN below three.
    """
    value = float(means_to_others.mean())
    low, high = bootstrap(
        lambda indices: value + 2 * (means_to_others[indices].mean(axis=1) - value),
        len(means_to_others) if len(means_to_others) > 2 else 0,
        how,
    )
    return Estimate(value, low, high, len(means_to_others))


def estimate_difference(a: ArrayLike, b: ArrayLike, how: Resampling) -> Estimate:
    """mean(a) - mean(b) of two aligned lists, [N] each, NaN where one lacks an item; items are resampled together."""
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if not np.isfinite(left).any() or not np.isfinite(right).any():
        return Estimate.missing("one of the two means is missing")

    def mean(values: FloatArray, indices: IntArray) -> FloatArray:
        valid = np.isfinite(values)
        counts = valid[indices].sum(axis=1)
        sums = np.where(valid, values, 0.0)[indices].sum(axis=1)
        return np.asarray(np.divide(sums, counts, out=np.full(len(indices), np.nan), where=counts > 0))

    low, high = bootstrap(lambda indices: mean(left, indices) - mean(right, indices), len(left), how)
    value = float(np.nanmean(left) - np.nanmean(right))
    return Estimate(value, low, high, int((np.isfinite(left) | np.isfinite(right)).sum()))
