"""Several comparisons at once: settings with the best of them, and parameters whose effects depend on each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal, TypeAlias

import numpy as np

from dbexp.compare.inference.components import run_means
from dbexp.compare.inference.effect import Evidence, gather, mean_effect
from dbexp.compare.inference.estimate import CONFIDENCE, EffectEstimate, Rule
from dbexp.compare.inference.pairing import Columns, Cube, FloatArray, Pairs, levels_of, setting_pairs, step_pairs

Setting: TypeAlias = tuple[str, ...]
"""A value of each swept parameter, in the order of `Evidence.parameters`."""
Steps: TypeAlias = Mapping[str, Sequence[tuple[str, str]]]
"""Parameter -> pairs of values to compare."""


@dataclass(frozen=True)
class RankedSetting:
    """A setting among others.

    Attributes:
        settings: parameter -> value as written.
        mean: over subjects of the mean over runs.
        behind: this setting minus the best one, its interval made for all settings at once; None for the best, and
            where the two share no pictures.
    """

    settings: Mapping[str, str]
    mean: float
    behind: EffectEstimate | None

    @property
    def is_behind(self) -> bool:
        """Whether it is significantly behind the best, so many settings having been looked at."""
        return self.behind is not None and self.behind.is_significant


def rank(
    pictures: Columns, better: Literal["higher", "lower"] = "higher", *, confidence: float = CONFIDENCE
) -> tuple[RankedSetting, ...]:
    """Settings, best mean first, each compared with the best.

    Which setting comes out best is decided by the same data, so a difference from it is judged like the largest of all
    differences between the settings: by the studentised range (Tukey and Kramer; conservative for unequal numbers,
    Hayter, Annals of Statistics 12, 1984), in place of Student's t. If all settings are equal, the chance that any is
    called behind is at most 1 - confidence. The comparison with the best of Hsu (Annals of Statistics 12, 1984) is
    narrower, but promises only that the best one is not called behind: of equal settings it often calls some so.

    Args:
        pictures: as for `dbexp.effect`.
        better: which means are good.
        confidence: of all intervals together.

    Raises:
        ConfigError: names the column that is wrong.
    """
    evidence = gather(pictures)
    means = _setting_means(evidence.cubes)
    sign = -1 if better == "higher" else 1
    order = sorted(means, key=lambda setting: (sign * means[setting], setting))
    distances = behind_first(evidence, order, confidence)
    return tuple(
        RankedSetting(dict(zip(evidence.parameters, setting, strict=True)), means[setting], distances[setting])
        for setting in order
    )


def behind_first(
    evidence: Evidence, order: Sequence[Setting], confidence: float
) -> dict[Setting, EffectEstimate | None]:
    """Each setting minus the first, as `rank` has it; None for the first, and where the two share no pictures."""
    # two settings may differ in any parameter, and of many pairs some are bound to look wilder than the rest
    spreads = replace(evidence.spreads, parameters=evidence.spreads.cells, apart=0.0)
    evidence, rule = replace(evidence, spreads=spreads), Rule(confidence, count=max(len(order), 2))
    distances: dict[Setting, EffectEstimate | None] = dict.fromkeys(order)
    for setting in order[1:]:
        pairs = [setting_pairs(cube, order[0], setting) for cube in evidence.cubes]
        if any(len(of_subject.seeds) for of_subject in pairs):
            distances[setting] = mean_effect(evidence, pairs, rule)
    return distances


def _setting_means(cubes: Sequence[Cube]) -> dict[Setting, float]:
    by_subject: dict[Setting, list[float]] = {}
    for cube in cubes:
        of_runs: dict[Setting, list[float]] = {}
        for setting, mean in zip(cube.settings.tolist(), run_means(cube).tolist(), strict=True):
            of_runs.setdefault(tuple(setting), []).append(mean)
        for key, values in of_runs.items():
            by_subject.setdefault(key, []).append(math.fsum(values) / len(values))
    return {setting: math.fsum(values) / len(values) for setting, values in by_subject.items()}


@dataclass(frozen=True)
class Interaction:
    """How an effect depends on another parameter.

    Attributes:
        parameter, low, high: the effect.
        other, other_low, other_high: what it may depend on.
        difference: effect at `other_high` minus effect at `other_low`.
        at_low, at_high: the two effects.
        p_value: of the difference, adjusted for all interactions that were looked at (Holm, Scand. J. Statistics 6,
            1979); NaN with one seed.
        is_significant: whether it is below 1 - confidence.
    """

    parameter: str
    low: str
    high: str
    other: str
    other_low: str
    other_high: str
    difference: EffectEstimate
    at_low: EffectEstimate
    at_high: EffectEstimate
    p_value: float = math.nan
    is_significant: bool = False


def interactions(
    pictures: Columns, steps: Steps | None = None, *, confidence: float = CONFIDENCE
) -> tuple[Interaction, ...]:
    """Each pair of swept parameters, each step of one against each step of the other; smallest p first.

    Where one is significant, the mean of the two effects describes neither: tell them apart.

    Args:
        pictures: as for `dbexp.effect`.
        steps: parameter -> pairs of values to compare; None: neighbours, numbers in their order.
        confidence: one minus the chance that any interaction is called significant where there is none.

    Raises:
        ConfigError: names the column that is wrong.
    """
    evidence = gather(pictures)
    neighbours = {name: list(pairwise(levels_of(evidence.cubes, name))) for name in evidence.parameters}
    return all_interactions(evidence, steps or neighbours, confidence)


def all_interactions(evidence: Evidence, steps: Steps, confidence: float) -> tuple[Interaction, ...]:
    """The same from evidence, values as the pictures write them."""
    rule = Rule(confidence)
    tests = [test for pair in combinations(steps, 2) for test in _between(evidence, *pair, steps, rule)]
    return tuple(sorted(_adjust(tests, 1 - confidence), key=lambda test: (math.isnan(test.p_value), test.p_value)))


def flip(evidence: Evidence, interaction: Interaction) -> Interaction | None:
    """The same of the other parameter: its effect at both values of the first; None where it has no pairs of runs."""
    i = interaction
    steps = {i.other: [(i.other_low, i.other_high)], i.parameter: [(i.low, i.high)]}
    reverse = next(_between(evidence, i.other, i.parameter, steps, i.difference.rule), None)
    return reverse and replace(reverse, difference=i.difference, p_value=i.p_value, is_significant=i.is_significant)


def _between(evidence: Evidence, parameter: str, other: str, steps: Steps, rule: Rule) -> Iterator[Interaction]:
    column = evidence.parameters.index(other)
    for low, high in steps[parameter]:
        pairs = [step_pairs(cube, parameter, low, high) for cube in evidence.cubes]
        for ends in steps[other]:
            balanced = [_balanced(of_subject, column, ends) for of_subject in pairs]
            if not any(len(of_subject.seeds) for of_subject in balanced):
                continue
            sides = [[subject.only(subject.contexts[:, column] == end) for subject in balanced] for end in ends]
            difference = mean_effect(evidence, balanced, rule, _contrast(column, ends[1]))
            at_low, at_high = (mean_effect(evidence, side, rule) for side in sides)
            yield Interaction(parameter, low, high, other, *ends, difference, at_low, at_high)


def _balanced(pairs: Pairs, column: int, ends: tuple[str, str]) -> Pairs:
    """The pairs at two values of a parameter, in contexts that are otherwise there for both."""
    rest = np.delete(pairs.contexts, column, axis=1).tolist()
    of_ends = [{tuple(r) for r, c in zip(rest, pairs.contexts[:, column], strict=True) if c == end} for end in ends]
    common = of_ends[0] & of_ends[1]
    is_common = np.array([tuple(r) in common for r in rest], dtype=np.bool_)
    return pairs.only(is_common & np.isin(pairs.contexts[:, column], ends))


def _contrast(column: int, end: str) -> Callable[[Pairs], FloatArray]:
    def weigh(pairs: Pairs) -> FloatArray:
        """[pairs]: the mean over contexts at `end` minus that over the others."""
        _, context, counts = np.unique(pairs.contexts, axis=0, return_inverse=True, return_counts=True)
        sign = np.where(pairs.contexts[:, column] == end, 1.0, -1.0)
        return np.asarray(sign / (len(counts) / 2 * counts[context.reshape(-1)]))

    return weigh


def _adjust(tests: Sequence[Interaction], level: float) -> list[Interaction]:
    """With p values that hold for all at once: the k-th smallest of n times n - k + 1, never falling."""
    values = [test.difference.p_value if test.difference.counts.seeds > 1 else math.nan for test in tests]
    order = sorted((index for index, p in enumerate(values) if math.isfinite(p)), key=lambda index: values[index])
    result, largest = list(tests), 0.0
    for position, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (len(order) - position)))
        result[index] = replace(tests[index], p_value=largest, is_significant=largest <= level)
    return result
