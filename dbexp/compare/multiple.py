"""Several comparisons at once: settings with the best of them, and parameters whose effects depend on each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal

import numpy as np

from dbexp.compare.components import run_means, seed_spreads
from dbexp.compare.inference import CONFIDENCE, EffectEstimate, Rule, estimate
from dbexp.compare.pairing import Columns, Cube, FloatArray, Pairs, arrange, levels_of, setting_pairs, step_pairs


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
    cubes = arrange(pictures)
    means = _setting_means(cubes)
    sign = -1 if better == "higher" else 1
    order = sorted(means, key=lambda setting: (sign * means[setting], setting))
    spreads = seed_spreads(cubes)
    # two settings may differ in any parameter, and of many pairs some are bound to look wilder than the rest
    spreads = replace(spreads, parameters=spreads.cells, apart=0.0)
    rule = Rule(confidence, count=max(len(order), 2))
    ranked = []
    for setting in order:
        pairs = [setting_pairs(cube, order[0], setting) for cube in cubes]
        is_comparable = setting != order[0] and any(len(each.seeds) for each in pairs)
        behind = estimate(cubes, pairs, spreads, rule) if is_comparable else None
        settings = dict(zip(cubes[0].parameters, setting, strict=True))
        ranked.append(RankedSetting(settings, means[setting], behind))
    return tuple(ranked)


def _setting_means(cubes: Sequence[Cube]) -> dict[tuple[str, ...], float]:
    by_subject: dict[tuple[str, ...], list[float]] = {}
    for cube in cubes:
        of_runs: dict[tuple[str, ...], list[float]] = {}
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
    pictures: Columns, steps: Mapping[str, Sequence[tuple[str, str]]] | None = None, *, confidence: float = CONFIDENCE
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
    cubes = arrange(pictures)
    chosen = steps or {name: _neighbours(levels_of(cubes, name)) for name in cubes[0].parameters}
    tested = [each for pair in combinations(chosen, 2) for each in _between(cubes, *pair, chosen, Rule(confidence))]
    return tuple(sorted(_adjusted(tested, 1 - confidence), key=lambda each: (math.isnan(each.p_value), each.p_value)))


def _neighbours(levels: Sequence[str]) -> list[tuple[str, str]]:
    return list(pairwise(levels))


def _between(
    cubes: Sequence[Cube], parameter: str, other: str, steps: Mapping[str, Sequence[tuple[str, str]]], rule: Rule
) -> Iterator[Interaction]:
    column = cubes[0].parameters.index(other)
    spreads = seed_spreads(cubes)
    for low, high in steps[parameter]:
        pairs = [step_pairs(cube, parameter, low, high) for cube in cubes]
        for ends in steps[other]:
            both = [_balanced(each, column, ends) for each in pairs]
            if not any(len(each.seeds) for each in both):
                continue
            sides = [[each.only(each.contexts[:, column] == end) for each in both] for end in ends]
            difference = estimate(cubes, both, spreads, rule, _contrast(column, ends[1]))
            at_low, at_high = (estimate(cubes, side, spreads, rule) for side in sides)
            yield Interaction(parameter, low, high, other, *ends, difference, at_low, at_high)


def _balanced(pairs: Pairs, column: int, ends: tuple[str, str]) -> Pairs:
    """The pairs at two values of a parameter, in contexts that are otherwise there for both."""
    rest = np.delete(pairs.contexts, column, axis=1).tolist()
    of_ends = [{tuple(r) for r, c in zip(rest, pairs.contexts[:, column], strict=True) if c == end} for end in ends]
    shared = of_ends[0] & of_ends[1]
    is_shared = np.array([tuple(r) in shared for r in rest], dtype=np.bool_)
    return pairs.only(is_shared & np.isin(pairs.contexts[:, column], ends))


def _contrast(column: int, end: str) -> Callable[[Pairs], FloatArray]:
    def weigh(pairs: Pairs) -> FloatArray:
        """[pairs]: the mean over contexts at `end` minus that over the others."""
        _, context, counts = np.unique(pairs.contexts, axis=0, return_inverse=True, return_counts=True)
        sign = np.where(pairs.contexts[:, column] == end, 1.0, -1.0)
        return np.asarray(sign / (len(counts) / 2 * counts[context.reshape(-1)]))

    return weigh


def _adjusted(tested: Sequence[Interaction], level: float) -> list[Interaction]:
    """With p values that hold for all at once: the k-th smallest of n times n - k + 1, never falling."""
    values = [each.difference.p_value if each.difference.counts.seeds > 1 else math.nan for each in tested]
    order = sorted((place for place, p in enumerate(values) if math.isfinite(p)), key=lambda place: values[place])
    adjusted, largest = list(tested), 0.0
    for rank_from_zero, place in enumerate(order):
        largest = max(largest, min(1.0, values[place] * (len(order) - rank_from_zero)))
        adjusted[place] = replace(tested[place], p_value=largest, is_significant=largest <= level)
    return adjusted
