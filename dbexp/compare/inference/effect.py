"""The effect of a parameter with an interval that speaks of other prompts, other training seeds and other subjects.

`effect` is what the page, the terminal, results.md, effects.csv, W&B and notebooks call. In short, for one subject:

    value       mean over pairs of runs of the mean over prompts of the paired differences of pictures
    rows        variance of that mean from the pairs of runs: their spread within equal settings / number of pairs
    columns     variance of that mean from the prompts: the spread of the prompts' means / number of prompts
    cells       what both contain: the spread of pairs x prompts / number of cells
    half width  sqrt(t(rows)^2 rows + t(columns)^2 columns - t(cells)^2 cells), at least that of rows or columns alone

`dbexp.compare.inference.components` has the model and the sources, docs/intervals.md ten lines that compute the same,
benchmarks/calibration.py how often such intervals hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dbexp.compare.inference.components import (
    NOTHING,
    UNKNOWN,
    Part,
    Parts,
    Spreads,
    Table,
    mean_difference,
    numbers_of,
    seed_spreads,
    stack,
)
from dbexp.compare.inference.estimate import CONFIDENCE, Counts, EffectEstimate, Rule
from dbexp.compare.inference.pairing import (
    Columns,
    Cube,
    FloatArray,
    Pairs,
    arrange,
    level_of,
    setting_runs,
    step_pairs,
    without_gaps,
)
from dbexp.core.errors import ConfigError


@dataclass(frozen=True)
class Evidence:
    """What the pictures of a sweep tell in one column.

    Attributes:
        cubes: one a subject.
        spreads: how far seeds move its runs.
    """

    cubes: tuple[Cube, ...]
    spreads: Spreads

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the swept parameters."""
        return self.cubes[0].parameters


def gather(pictures: Columns) -> Evidence:
    """Pictures, as `effect` takes them, made ready for several questions; raises as `effect` does."""
    cubes = arrange(pictures)
    return Evidence(cubes, seed_spreads(cubes))


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
            far a seed moves a run. `dbexp.load_pictures(sweep, "dino")` gives it.
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
    evidence = gather(pictures)
    first, second = (level_of(evidence.cubes, parameter, value) for value in (low, high))
    if first == second:
        raise ConfigError(f"{parameter}: low and high are both {first}; an effect needs two values")
    estimate = step_effect(evidence, parameter, first, second, Rule(confidence, subjects == "sample"))
    if estimate is None:
        rest = ", ".join(name for name in evidence.parameters if name != parameter) or "all"
        raise ConfigError(
            f"{parameter} {first} → {second}: no two runs differ in it alone; "
            f"runs must share seed, subject, prompts and {rest}"
        )
    return estimate


def step_effect(evidence: Evidence, parameter: str, low: str, high: str, rule: Rule) -> EffectEstimate | None:
    """The effect of one step, values as the pictures write them; None where no two runs differ in it alone."""
    pairs = [step_pairs(cube, parameter, low, high) for cube in evidence.cubes]
    return mean_effect(evidence, pairs, rule) if any(len(of_subject.seeds) for of_subject in pairs) else None


def level(evidence: Evidence, setting: Sequence[str], rule: Rule) -> EffectEstimate | None:
    """The mean of a setting, with an interval for subjects, prompts and training seeds like its own; None without runs.

    Nothing is paired, so easy prompts and lucky seeds do not cancel: it is wider than that of a difference.

    Args:
        evidence: of the whole sweep.
        setting: a value per parameter, as the pictures write them.
        rule: how the interval is made.
    """
    runs = [setting_runs(cube, setting) for cube in evidence.cubes]
    if not any(len(of_subject.seeds) for of_subject in runs):
        return None
    return mean_effect(replace(evidence, spreads=NOTHING), runs, rule)


def equal_weights(pairs: Pairs) -> FloatArray:
    """[pairs] weights that sum to 1: contexts count alike, and so do the pairs of a context."""
    context = numbers_of(pairs.contexts)
    counts = np.bincount(context)
    return np.asarray(1 / (len(counts) * counts[context]))


def mean_effect(
    evidence: Evidence,
    pairs: Sequence[Pairs],
    rule: Rule,
    weigh: Callable[[Pairs], FloatArray] = equal_weights,
) -> EffectEstimate:
    """The mean difference of pairs, with its interval.

    Args:
        evidence: of the whole sweep.
        pairs: a set a cube of the evidence; subjects without pairs do not count.
        rule: how the interval is made.
        weigh: pairs -> [pairs] weights.
    """
    samples = [sample for sample in zip(evidence.cubes, pairs, strict=True) if len(sample[1].seeds)]
    weights = [weigh(of_subject) for _, of_subject in samples]
    value, parts, means = mean_difference(_tables(samples, weights), evidence.spreads)
    is_sample = rule.subjects_are_sample and len(samples) > 1
    if is_sample:
        parts = _over_subjects(samples, weights)
    half = parts.half_width(rule.quantile)
    agreeing = int((means * value > 0).sum())
    return EffectEstimate(value, value - half, value + half, rule, _counts(samples), parts, agreeing, is_sample)


_Samples = Sequence[tuple[Cube, Pairs]]
"""Subjects with their pairs, at least one pair each."""


def _share_prompts(samples: _Samples) -> bool:
    return len({cube.prompts for cube, _ in samples}) == 1


def _tables(samples: _Samples, weights: Sequence[FloatArray]) -> list[Table]:
    """A table for all subjects if their prompts are the same, else one each."""
    seeds = sorted({str(seed) for _, pairs in samples for seed in pairs.seeds})
    tables = [
        Table(pairs.differences, numbers_of(pairs.contexts), np.searchsorted(seeds, pairs.seeds), weight / len(samples))
        for (_, pairs), weight in zip(samples, weights, strict=True)
    ]
    groups = [tables] if _share_prompts(samples) else [[table] for table in tables]
    return [_without_empty_columns(stack(group)) for group in groups]


def _without_empty_columns(table: Table) -> Table:
    """Without the prompts that no pair has."""
    return replace(table, differences=table.differences[:, _has_prompt(table.differences)])


def _has_prompt(differences: FloatArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[pairs, prompts] -> [prompts]: whether any pair has the prompt."""
    return np.asarray(np.isfinite(differences).any(axis=0))


def _over_subjects(samples: _Samples, weights: Sequence[FloatArray]) -> Parts:
    """Parts of the variance of the mean over subjects, if these are a sample: a row is a subject.

    Its runs and, unless subjects share them, its prompts are its own, so their part of the variance is in the spread of
    subjects already.
    """
    number = len(samples)
    present = [_has_prompt(pairs.differences) for _, pairs in samples]
    rows = [
        weight @ without_gaps(pairs.differences[:, columns])
        for (_, pairs), weight, columns in zip(samples, weights, present, strict=True)
    ]
    if not _share_prompts(samples):
        means = np.array([row.mean() for row in rows])
        return Parts(Part(float(means.var(ddof=1)) / number, number - 1), UNKNOWN, UNKNOWN)
    table = np.full((number, len(samples[0][0].prompts)), np.nan)
    for subject, (columns, row) in enumerate(zip(present, rows, strict=True)):
        table[subject, columns] = row
    stratum, shares = np.zeros(number, dtype=np.int64), np.full(number, 1 / number)
    return mean_difference([_without_empty_columns(Table(table, stratum, np.arange(number), shares))], NOTHING)[1]


def _counts(samples: _Samples) -> Counts:
    prompts = {
        (cube.prompts[column], "" if _share_prompts(samples) else cube.subject)
        for cube, pairs in samples
        for column in np.flatnonzero(_has_prompt(pairs.differences))
    }
    return Counts(
        seeds=len({str(seed) for _, pairs in samples for seed in pairs.seeds}),
        prompts=len(prompts),
        subjects=len(samples),
        contexts=len({tuple(context) for _, pairs in samples for context in pairs.contexts}),
        runs=sum(len(pairs.seeds) for _, pairs in samples),
        pictures=sum(int(pairs.pictures.sum()) for _, pairs in samples),
    )
