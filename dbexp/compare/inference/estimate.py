"""An effect with its interval: what it rests on, how wide it is, what it speaks of, and what more seeds would buy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from dbexp.compare.inference.components import Part, Parts
from dbexp.compare.inference.quantiles import range_quantile, t_quantile
from dbexp.core.errors import ConfigError, count, listed

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
        return self.scope_of("prompt")

    def scope_of(self, prompt: str) -> str:
        """The same with another noun for a prompt: columns of class images have none.

        What is sampled stands after "for", what the numbers are confined to after it.
        """
        counts, samples = self.counts, {}
        if self.subjects_are_sample:
            samples["subject"] = counts.subjects
        if self.covers_prompts:
            samples[prompt] = counts.prompts
        if counts.seeds > 1 and self.covers_seeds:
            samples["training seed"] = counts.seeds
        limits = []
        if list(samples) == [prompt]:
            samples = {}  # prompts alone are too few of the reasons why a number may change
        if prompt not in samples:
            limits.append(f"on this {prompt}" if counts.prompts == 1 else f"on these {prompt}s")
        if counts.subjects > 1 and not self.subjects_are_sample:
            limits.append(f"on these {counts.subjects} subjects")
        if counts.seeds == 1:
            limits.append("with the spread of seeds of other settings" if self.covers_seeds else "for this seed")
        if samples:
            numbers = ", ".join(count(n, noun.removeprefix("training ")) for noun, n in samples.items())
            limits.insert(0, f"for {listed([f'{noun}s' for noun in samples])} like these ({numbers})")
        return ", ".join(limits)


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
