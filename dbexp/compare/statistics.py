"""What the scores of runs support by themselves: means and spreads, pairs of runs, the Pareto front. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Moments:
    """Mean and sample standard deviation (NaN for one value) of n values."""

    mean: float
    deviation: float
    n: int


def moments(values: Sequence[float]) -> Moments:
    """Of the values that are there; NaN for none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Moments(math.nan, math.nan, 0)
    mean = math.fsum(finite) / len(finite)
    squares = math.fsum((value - mean) ** 2 for value in finite)
    return Moments(mean, math.sqrt(squares / (len(finite) - 1)) if len(finite) > 1 else math.nan, len(finite))


def by_level(levels: Sequence[str], values: Sequence[float]) -> dict[str, Moments]:
    """Value of a parameter -> mean and spread of the runs that have it; an item per run in both lists."""
    groups: dict[str, list[float]] = {}
    for level, value in zip(levels, values, strict=True):
        groups.setdefault(level, []).append(value)
    return {level: moments(group) for level, group in groups.items()}


def pooled_deviation(groups: Sequence[Sequence[float]]) -> Moments:
    """Standard deviation within groups: sqrt(sum of squares about each group's mean / (values - groups)).

    Args:
        groups: values that differ by chance alone, group by group.

    Returns:
        Its `mean` is NaN; `n` counts values, of groups that have at least two.
    """
    squares, values, used = 0.0, 0, 0
    for group in groups:
        spread = moments(group)
        if spread.n > 1:
            squares += spread.deviation**2 * (spread.n - 1)
            values, used = values + spread.n, used + 1
    return Moments(math.nan, math.sqrt(squares / (values - used)) if values > used else math.nan, values)


def matched(settings: Sequence[Mapping[str, str]], parameter: str, low: str, high: str) -> list[tuple[int, int]]:
    """Indices of runs at two values of a parameter that agree in everything else, in the order of the first."""

    def rest(run: int) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, value) for name, value in settings[run].items() if name != parameter))

    at = {level: [run for run in range(len(settings)) if settings[run][parameter] == level] for level in (low, high)}
    partners = {rest(run): run for run in at[high]}
    return [(run, partners[rest(run)]) for run in at[low] if rest(run) in partners]


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other beats, being at least as high in all coordinates and higher in one; never NaN."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    complete = [point for point in points if all(math.isfinite(value) for value in point)]
    return [point in complete and not any(beats(other, point) for other in complete) for point in points]


def knee(points: Sequence[Sequence[float]]) -> int | None:
    """The knee of a front in two coordinates, higher being better in both: where giving up either buys least.

    It is the point farthest beyond the line between the two ends of the front, each coordinate being counted from one
    end to the other (Das, "On characterizing the knee of the Pareto curve based on normal-boundary intersection",
    Structural Optimization 18, 1999).

    Args:
        points: of the front, none beaten by another.

    Returns:
        The number of the point; None where no point lies beyond the line, as of fewer than three.
    """
    if len(points) < 3:
        return None
    right, top = max(points, key=lambda point: point[0]), max(points, key=lambda point: point[1])
    width, height = right[0] - top[0], top[1] - right[1]
    if width <= 0 or height <= 0:
        return None
    beyond = [(x - top[0]) / width + (y - right[1]) / height - 1 for x, y in points]
    farthest = max(range(len(points)), key=beyond.__getitem__)
    return farthest if beyond[farthest] > 1e-9 else None
