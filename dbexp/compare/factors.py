"""The swept parameters of a set of runs, as statistics and readers need them: one name each, with its values in order.

What moves together is one factor: `lr_schedule=polynomial` changes several fields at once, and nothing can tell their
effects apart. So a parameter whose value follows from another's in all runs is counted with that other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dbexp.runs.names import differing, is_seed, setting, short_names
from dbexp.runs.record import Run

SUBJECT = tuple(f"dataset.{field}" for field in ("name", "source", "path", "root", "hub"))
"""Parameters that say whose photographs are learnt."""


@dataclass(frozen=True)
class Factor:
    """A parameter that differs between runs.

    Attributes:
        name: dotted, as in the config.
        title: short, as a reader knows it.
        levels: its values as written; numbers ascending, anything else in the order of the runs.
        together: other parameters whose values follow from its own.
        is_ordered: whether the values are numbers.
    """

    name: str
    title: str
    levels: tuple[str, ...]
    together: tuple[str, ...]
    is_ordered: bool

    @property
    def is_seed(self) -> bool:
        """Whether it is chance that varies."""
        return is_seed(self.name)

    @property
    def is_subject(self) -> bool:
        """Whether it is the subject: its photographs differ."""
        return self.name in SUBJECT

    @property
    def is_measure(self) -> bool:
        """Whether it changes how scores are made: numbers then cannot be compared."""
        return self.name.startswith("evaluate.")

    def steps(self) -> list[tuple[str, str]]:
        """What to compare: neighbours among numbers, everything with the first otherwise."""
        if self.is_ordered:
            return list(zip(self.levels, self.levels[1:], strict=False))
        return [(self.levels[0], level) for level in self.levels[1:]]


def factors(runs: Sequence[Run]) -> list[Factor]:
    """The factors of runs, in the order of the config; seeds last."""
    runs = [run for run in runs if run.config]
    names = differing(run.config for run in runs)
    levels = {name: [setting(run.config.get(name)) for run in runs] for name in names}
    swept = {word.partition("=")[0].lstrip("+") for run in runs for word in run.overrides}

    def rank(name: str) -> tuple[bool, bool, int, int]:
        """Who speaks for others: no seed; named on the command line, itself or its group; fine; early."""
        is_named = name in swept or name.split(".")[0] in swept
        return is_seed(name), not is_named, -len(set(levels[name])), names.index(name)

    followers: dict[str, list[str]] = {}
    for name in sorted(names, key=rank):
        leader = next((lead for lead in followers if not is_seed(lead) and _follows(levels[name], levels[lead])), None)
        if leader is None:
            followers[name] = []
        else:
            followers[leader].append(name)
    leaders = sorted(followers, key=lambda name: (is_seed(name), names.index(name)))
    titles = short_names(leaders)
    return [_factor(name, titles[name], levels[name], followers[name]) for name in leaders]


def _follows(values: Sequence[str], others: Sequence[str]) -> bool:
    """Whether each of the other values comes with one value only."""
    return len(set(zip(others, values, strict=True))) == len(set(others))


def _factor(name: str, title: str, levels: Sequence[str], together: Sequence[str]) -> Factor:
    distinct = list(dict.fromkeys(levels))
    numbers = [_number(level) for level in distinct]
    is_ordered = all(math.isfinite(number) for number in numbers)
    if is_ordered:
        distinct = [level for _, level in sorted(zip(numbers, distinct, strict=True))]
    return Factor(name, title, tuple(distinct), tuple(sorted(together)), is_ordered)


def _number(level: str) -> float:
    try:
        return float(level)
    except ValueError:
        return math.nan


def words(settings: Mapping[str, str], swept: Sequence[Factor]) -> str:
    """Settings as a title: rank=16 weight=0."""
    return " ".join(f"{factor.title}={settings[factor.name]}" for factor in swept if factor.name in settings)
