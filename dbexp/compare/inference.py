"""The effect of a parameter with an interval that speaks of other prompts, other training seeds and other subjects.

`effect` is what the page, the terminal, results.csv, W&B and notebooks call. In short, for one subject:

    value       mean over pairs of runs of the mean over prompts of the paired differences of pictures
    rows        variance of that mean from the pairs of runs: their spread within equal settings / number of pairs
    columns     variance of that mean from the prompts: the spread of the prompts' means / number of prompts
    cells       what both contain: the spread of pairs x prompts / number of cells
    half width  sqrt(t(rows)^2 rows + t(columns)^2 columns - t(cells)^2 cells), at least that of rows or columns alone

`dbexp.compare.components` has the model and the sources, benchmarks/calibration.py how often such intervals hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dbexp.compare.components import (
    NOTHING,
    UNKNOWN,
    Part,
    Parts,
    Spreads,
    Table,
    joined,
    mean_difference,
    numbers_of,
    seed_spreads,
)
from dbexp.compare.pairing import Columns, Cube, FloatArray, Pairs, arrange, level_of, step_pairs, without_gaps
from dbexp.compare.quantiles import range_quantile, t_quantile
from dbexp.core.errors import ConfigError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Counts:
    """What a difference rests on.

    Attributes:
        seeds, prompts, subjects: distinct ones among the pairs.
        contexts: combinations of the other swept parameters.
        runs, pictures: pairs of them.
    """

    seeds: int
    prompts: int
    subjects: int
    contexts: int
    runs: int
    pictures: int


@dataclass(frozen=True)
class Rule:
    """How an interval is made.

    Attributes:
        confidence: its coverage, in (0, 1).
        subjects_are_sample: whether several subjects stand for others like them.
        count: settings that are compared with one another at once; 2 for a single difference.
    """

    confidence: float = CONFIDENCE
    subjects_are_sample: bool = True
    count: int = 2

    def quantile(self, df: float) -> float:
        """Critical value: Student's t, or that of the largest among the differences of several settings."""
        if self.count == 2:
            return t_quantile((1 + self.confidence) / 2, df)
        return range_quantile(self.confidence, self.count, df)


@dataclass(frozen=True)
class EffectEstimate:
    """How much higher a column is at one value of a parameter than at another.

    Attributes:
        value: mean paired difference, in units of the column.
        low, high: ends of the interval; NaN where nothing was repeated.
        rule: how the interval is made.
        counts: what it rests on.
        parts: of its variance. Where `counts.seeds` is 1 and nothing else tells how far seeds move a run, they are
            without rows, and the interval speaks of that seed alone.
        agreeing: pairs of runs whose own difference has the sign of the value.
        subjects_are_sample: whether the interval speaks of other subjects too.
    """

    value: float
    low: float
    high: float
    rule: Rule
    counts: Counts
    parts: Parts
    agreeing: int
    subjects_are_sample: bool

    @property
    def is_significant(self) -> bool:
        """Whether training was repeated, and the interval leaves out zero. With one seed it never is."""
        return self.counts.seeds > 1 and (self.low > 0 or self.high < 0)

    @property
    def covers_seeds(self) -> bool:
        """Whether it allows for other training seeds, by these or by how far seeds move other settings."""
        return self.counts.seeds > 1 or (self.parts.rows.is_known and not self.subjects_are_sample)

    @property
    def covers_prompts(self) -> bool:
        """Whether the interval speaks of other prompts; those of a subject are part of the spread between subjects."""
        return self.parts.columns.is_known or (self.subjects_are_sample and self.counts.prompts > 1)

    @property
    def standard_error(self) -> float:
        """Square root of the estimated variance of the value."""
        return math.sqrt(self.parts.variance)

    @property
    def half_width(self) -> float:
        """Of the interval, in units of the column."""
        return (self.high - self.low) / 2

    @property
    def df(self) -> float:
        """Degrees of freedom of the one quantile that times the standard error makes this interval; NaN without one."""
        return _matching_df(self.half_width / self.standard_error, self.rule) if self.half_width > 0 else math.nan

    @property
    def p_value(self) -> float:
        """The smallest 1 - confidence at which the interval still leaves out zero; NaN without an interval."""
        return _p_value(self.value, self._half_width_at) if math.isfinite(self.low) else math.nan

    def _half_width_at(self, confidence: float) -> float:
        return self.parts.half_width(replace(self.rule, confidence=confidence).quantile)

    def half_width_with(self, seeds: int) -> float:
        """What to expect of the half width with another number of training seeds, spreads being what they seem.

        NaN where nothing tells how far seeds move a run, and where subjects are a sample: then these set the width.

        Raises:
            ConfigError: `seeds` is not positive.
        """
        if seeds < 1:
            raise ConfigError(f"seeds={seeds}: must be at least 1")
        if not self.covers_seeds or self.subjects_are_sample:
            return math.nan
        now, factor = self.counts.seeds, self.counts.seeds / seeds
        rows, columns, cells = self.parts.rows, self.parts.columns, self.parts.cells
        df = rows.df * (seeds - 1) / (now - 1) if now > 1 else rows.df + seeds - 1
        if columns.is_known and cells.is_known:
            columns = Part(max(columns.variance - cells.variance * (1 - factor), 0.0), columns.df)
            cells = Part(cells.variance * factor, cells.df)
        return Parts(Part(rows.variance * factor, df), columns, cells).half_width(self.rule.quantile)

    @property
    def scope(self) -> str:
        """What the interval speaks of, for the end of a sentence: for prompts and training seeds like these
        (25 prompts, 3 seeds); on these prompts, for this seed."""
        sampled = {
            "subjects": self.counts.subjects if self.subjects_are_sample else 0,
            "prompts": self.counts.prompts if self.covers_prompts else 0,
            "training seeds": self.counts.seeds if self.counts.seeds > 1 and self.covers_seeds else 0,
        }
        return _scope({name: count for name, count in sampled.items() if count}, self.counts, self.covers_seeds)


def effect(
    pictures: Columns, parameter: str, low: object, high: object, *, confidence: float = CONFIDENCE,
    subjects: str = "sample",
) -> EffectEstimate:  # fmt: skip
    """How much higher a column is at `high` than at `low`, everything else being equal.

    Runs are compared that agree in every other swept parameter, seed and subject, picture by picture. Contexts
    (combinations of the other parameters) count alike, and so do subjects. Prompts and training seeds are samples, and
    so are subjects where there are several.

    Args:
        pictures: a DataFrame (or a mapping of columns) with a row per picture: `value`, `prompt`, `image`, `seed`,
            optionally `subject`, and a column per swept parameter. Rows of other values of `parameter` help to tell how
            far a seed moves a run.
        parameter: the column that is compared.
        low, high: two of its values, as written or as numbers.
        confidence: coverage of the interval, in (0, 1).
        subjects: "sample": several subjects stand for others like them; "fixed": the interval speaks of these alone.

    Raises:
        ConfigError: names the column or value that is wrong; or no two runs differ in the parameter alone.
    """
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence={confidence}: must lie between 0 and 1, such as 0.95")
    if subjects not in ("sample", "fixed"):
        raise ConfigError(f"subjects={subjects}: choose sample or fixed")
    cubes = arrange(pictures)
    first, second = level_of(cubes, parameter, low), level_of(cubes, parameter, high)
    if first == second:
        raise ConfigError(f"{parameter}: low and high are both {first}; an effect needs two values")
    pairs = [step_pairs(cube, parameter, first, second) for cube in cubes]
    if not any(len(each.seeds) for each in pairs):
        raise ConfigError(
            f"{parameter} {first} → {second}: no two runs differ in it alone; "
            f"runs must share seed, subject and {', '.join(n for n in cubes[0].parameters if n != parameter) or 'all'}"
        )
    return estimate(cubes, pairs, seed_spreads(cubes), Rule(confidence, subjects == "sample"))


def equal_weights(pairs: Pairs) -> FloatArray:
    """[pairs] weights that sum to 1: contexts count alike, and so do the pairs of a context."""
    context = numbers_of(pairs.contexts)
    counts = np.bincount(context)
    return np.asarray(1 / (len(counts) * counts[context]))


def estimate(
    cubes: Sequence[Cube], pairs: Sequence[Pairs], spreads: Spreads, rule: Rule,
    weigh: Callable[[Pairs], FloatArray] = equal_weights,
) -> EffectEstimate:  # fmt: skip
    """The mean difference of pairs, with its interval.

    Args:
        cubes, pairs: one each a subject; subjects without pairs do not count.
        spreads: of the whole sweep.
        rule: how the interval is made.
        weigh: pairs -> [pairs] weights.
    """
    used = [(cube, each) for cube, each in zip(cubes, pairs, strict=True) if len(each.seeds)]
    weights = [weigh(each) for _, each in used]
    value, fixed, means = mean_difference(_tables(used, weights), spreads)
    is_sample = rule.subjects_are_sample and len(used) > 1
    parts = _over_subjects(used, weights) if is_sample else fixed
    half = parts.half_width(rule.quantile)
    agreeing = int((means * value > 0).sum())
    return EffectEstimate(value, value - half, value + half, rule, _counts(used), parts, agreeing, is_sample)


def _share_prompts(used: Sequence[tuple[Cube, Pairs]]) -> bool:
    return len({cube.prompts for cube, _ in used}) == 1


def _tables(used: Sequence[tuple[Cube, Pairs]], weights: Sequence[FloatArray]) -> list[Table]:
    """A table for all subjects if their prompts are the same, else one each."""
    seeds = sorted({str(seed) for _, pairs in used for seed in pairs.seeds})
    tables = [
        Table(pairs.differences, numbers_of(pairs.contexts), np.searchsorted(seeds, pairs.seeds), weight / len(used))
        for (_, pairs), weight in zip(used, weights, strict=True)
    ]
    groups = [tables] if _share_prompts(used) else [[table] for table in tables]
    return [_with_filled_columns(joined(group)) for group in groups]


def _with_filled_columns(table: Table) -> Table:
    """Without the prompts that no pair has."""
    there = np.isfinite(table.differences).any(axis=0)
    return replace(table, differences=table.differences[:, there])


def _over_subjects(used: Sequence[tuple[Cube, Pairs]], weights: Sequence[FloatArray]) -> Parts:
    """Parts of the variance of the mean over subjects, if these are a sample: a row is a subject.

    Its runs and, unless subjects share them, its prompts are its own, so their part of the variance is in the spread of
    subjects already.
    """
    count = len(used)
    rows = [weight @ without_gaps(_present(pairs)) for (_, pairs), weight in zip(used, weights, strict=True)]
    if not _share_prompts(used):
        means = np.array([row.mean() for row in rows])
        return Parts(Part(float(means.var(ddof=1)) / count, count - 1), UNKNOWN, UNKNOWN)
    table = np.full((count, len(used[0][0].prompts)), np.nan)
    for place, ((_, pairs), row) in enumerate(zip(used, rows, strict=True)):
        table[place, np.isfinite(pairs.differences).any(axis=0)] = row
    one_stratum, shares = np.zeros(count, dtype=np.int64), np.full(count, 1 / count)
    return mean_difference([_with_filled_columns(Table(table, one_stratum, np.arange(count), shares))], NOTHING)[1]


def _present(pairs: Pairs) -> FloatArray:
    return pairs.differences[:, np.isfinite(pairs.differences).any(axis=0)]


def _counts(used: Sequence[tuple[Cube, Pairs]]) -> Counts:
    prompts = {
        (cube.prompts[column], "" if _share_prompts(used) else cube.subject)
        for cube, pairs in used
        for column in np.flatnonzero(np.isfinite(pairs.differences).any(axis=0))
    }
    return Counts(
        seeds=len({str(seed) for _, pairs in used for seed in pairs.seeds}),
        prompts=len(prompts),
        subjects=len(used),
        contexts=len({tuple(context) for _, pairs in used for context in pairs.contexts}),
        runs=sum(len(pairs.seeds) for _, pairs in used),
        pictures=sum(int(pairs.pictures.sum()) for _, pairs in used),
    )


def _scope(sampled: Mapping[str, int], counts: Counts, covers_seeds: bool) -> str:
    """What is sampled stands after "for", what the numbers are confined to after it."""
    confined = []
    if "prompts" not in sampled:
        confined.append("on this prompt" if counts.prompts == 1 else "on these prompts")
    if "subjects" not in sampled and counts.subjects > 1:
        confined.append(f"on these {counts.subjects} subjects")
    if counts.seeds == 1:
        confined.append("for this seed" if not covers_seeds else "with the spread of seeds of other settings")
    if list(sampled) == ["prompts"]:
        confined, sampled = ["on these prompts", *confined], {}
    text = ""
    if sampled:
        numbers = ", ".join(f"{count:,} {name.removeprefix('training ')}" for name, count in sampled.items())
        text = f"for {_listed(list(sampled))} like these ({numbers})"
    return ", ".join(part for part in (text, *confined) if part)


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)


def _matching_df(ratio: float, rule: Rule) -> float:
    """Where rule.quantile(df) = ratio, by bisection of log df."""
    low, high = 0.0, math.log(1e6)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rule.quantile(math.exp(middle)) > ratio else (low, middle)
    return math.exp(high)


def _p_value(value: float, half_width: Callable[[float], float]) -> float:
    """Where half_width(1 - p) = |value|, by bisection of log p; what is smaller than 1e-12 is called 1e-12."""
    low, high = math.log(1e-12), 0.0
    if value == 0:
        return 1.0
    if half_width(1 - math.exp(low)) <= abs(value):
        return math.exp(low)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if half_width(1 - math.exp(middle)) < abs(value) else (middle, high)
    return math.exp(high)
