"""What the scores of runs support: paired differences, means per value of a parameter, the Pareto front. Pure.

A paired difference compares runs that agree in everything but one parameter, picture by picture: same subject, same
prompt, same seed. What both runs share (an easy prompt, a lucky seed) then cancels. Intervals are percentile bootstraps
over prompts (`dbexp.evaluate.functional.paired_difference`); all pictures of a prompt, from all pairs of runs, are
resampled together. So an interval speaks of other prompts, not of other training seeds: for those, see in how many
pairs of runs the difference has the same sign.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dbexp.evaluate.functional import Estimate, PairKey, Resampling, paired_difference


@dataclass(frozen=True)
class RunScores:
    """A finished run as statistics see it."""

    settings: Mapping[str, str]
    """Parameter -> value as written, of everything that differs between trials."""
    values: Mapping[str, float]
    """Column -> value."""
    pairs: Mapping[str, Mapping[PairKey, float]]
    """Column -> (subject, prompt, seed) -> value; empty where a column has one value per run alone."""


@dataclass(frozen=True)
class Difference:
    """How much higher a column is at one value of a parameter than at another."""

    estimate: Estimate
    """Its `n` counts pairs of pictures; pairs of runs where a column has no value per picture."""
    runs: int
    """Pairs of runs."""
    agreeing: int
    """Of them, those whose own difference has the sign of the estimate."""

    @property
    def is_significant(self) -> bool:
        """Whether there is an interval and it leaves out zero."""
        return self.estimate.low > 0 or self.estimate.high < 0


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


def main_effect(trials: Sequence[RunScores], parameter: str, column: str) -> dict[str, Moments]:
    """Value of a parameter -> mean and spread of a column over all trials that have it."""
    values: dict[str, list[float]] = {}
    for trial in trials:
        values.setdefault(trial.settings[parameter], []).append(trial.values.get(column, math.nan))
    return {level: moments(scores) for level, scores in values.items()}


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


def matched(trials: Sequence[RunScores], parameter: str, low: str, high: str) -> list[tuple[RunScores, RunScores]]:
    """Pairs of trials at two values of a parameter that agree in everything else, in the order of the first."""

    def rest(trial: RunScores) -> tuple[tuple[str, str], ...]:
        return tuple(sorted((name, value) for name, value in trial.settings.items() if name != parameter))

    partners = {rest(trial): trial for trial in trials if trial.settings[parameter] == high}
    pairs = [(trial, partners.get(rest(trial))) for trial in trials if trial.settings[parameter] == low]
    return [(trial, partner) for trial, partner in pairs if partner is not None]


def difference(pairs: Sequence[tuple[RunScores, RunScores]], column: str, how: Resampling) -> Difference:
    """Second minus first of each pair of trials, over all pictures of all pairs.

    Args:
        pairs: as `matched` finds them.
        column: of the metric table.
        how: of the interval.

    Returns:
        A difference without interval where a trial has one value of the column and none per picture; NaN with its
        reason where nothing can be compared.
    """
    first: dict[PairKey, float] = {}
    second: dict[PairKey, float] = {}
    for number, trials in enumerate(pairs):
        for trial, scores in zip(trials, (first, second), strict=True):
            for (subject, prompt, seed), value in trial.pairs.get(column, {}).items():
                scores[subject, prompt, seed * len(pairs) + number] = value  # a number per (seed, pair of trials)
    changes = [b.values.get(column, math.nan) - a.values.get(column, math.nan) for a, b in pairs]
    changes = [value for value in changes if math.isfinite(value)]
    estimate = paired_difference(second, first, how)
    if math.isnan(estimate.value) and changes:
        estimate = Estimate(math.fsum(changes) / len(changes), n=len(changes))
    return Difference(estimate, len(changes), sum(value * estimate.value > 0 for value in changes))


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other beats, being at least as high in all coordinates and higher in one; never NaN."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    complete = [point for point in points if all(math.isfinite(value) for value in point)]
    return [point in complete and not any(beats(other, point) for other in complete) for point in points]
