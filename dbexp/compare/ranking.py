"""Who is best: runs gathered over their seeds, and the runs that no other beats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dbexp.compare.statistics import pareto
from dbexp.evaluate.columns import RECOMMEND, column_of
from dbexp.runs.names import is_seed, matters
from dbexp.runs.record import Run, columns_of


@dataclass(frozen=True)
class RankedRun:
    """A job among others.

    Attributes:
        run: as read from disk.
        id: its number, with a letter for its sweep where there are several.
        title: id and what tells it from the others.
        settings: factor -> value as written.
        on_front: whether no other run beats it in subject and in prompt fidelity.
    """

    run: Run
    id: str
    title: str
    settings: Mapping[str, str]
    on_front: bool


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in nothing but their seed.

    Attributes:
        runs: one or more.
        mean, deviation: column -> mean over seeds, and sample standard deviation (NaN for one seed).
    """

    runs: tuple[Run, ...]
    mean: Mapping[str, float]
    deviation: Mapping[str, float]


def over_seeds(runs: Iterable[Run]) -> list[Group]:
    """Finished runs gathered by everything but their seeds, in the order of their first member."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        if run.report is not None:
            rest = {name: value for name, value in run.config.items() if matters(name) and not is_seed(name)}
            members.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    return [Group(tuple(group), *_moments(group)) for group in members.values()]


def _moments(runs: Sequence[Run]) -> tuple[dict[str, float], dict[str, float]]:
    """A mean over seeds of which one has no value is NaN: a mean over the others would not say so."""
    mean, deviation = {}, {}
    for column in (*columns_of(runs), RECOMMEND):
        values = [run.value(column) for run in runs if run.report]
        if not all(map(math.isnan, values)):
            mean[column] = sum(values) / len(values)
            squares = sum((value - mean[column]) ** 2 for value in values)
            deviation[column] = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
    return mean, deviation


def by_mean(groups: Iterable[Group], objective: str) -> list[Group]:
    """Groups, best mean first; those without one last."""

    def rank(group: Group) -> float:
        mean = group.mean.get(objective, math.nan)
        return math.inf if math.isnan(mean) else -column_of(objective).sign * mean

    return sorted(groups, key=rank)


def front(runs: Sequence[Run], columns: Sequence[str]) -> list[Run]:
    """The runs that no other beats: that is as good in all columns and better in one. A run without a value is none."""
    points = [[column_of(column).sign * run.value(column) for column in columns] for run in runs]
    return [run for run, on_front in zip(runs, pareto(points), strict=True) if on_front]
