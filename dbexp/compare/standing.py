"""Settings among others: runs gathered by what was set, over their seeds and subjects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller

from dbexp.compare.factors import Factor, words
from dbexp.compare.inference.effect import Evidence
from dbexp.compare.inference.estimate import EffectEstimate
from dbexp.compare.inference.multiple import behind_first
from dbexp.compare.ranking import RankedRun
from dbexp.compare.scores import PictureScores
from dbexp.compare.statistics import Moments, moments, pooled_deviation
from dbexp.evaluate.columns import RECOMMEND, column_of
from dbexp.runs.record import Run, columns_of


@dataclass(frozen=True)
class Standing:
    """Runs of one setting, whatever their seeds and subjects, among others.

    Attributes:
        entries: one or more.
        title: what tells them from the others.
        settings: factor -> value as written, seeds and subjects left out.
        moments: column or objective -> mean over subjects of the mean over seeds, and the deviation over seeds.
        behind: how much higher the objective is than in the best, its interval made for all settings at once; None for
            the best, and where there are no pairs.
    """

    entries: tuple[RankedRun, ...]
    title: str
    settings: Mapping[str, str]
    moments: Mapping[str, Moments]
    behind: EffectEstimate | None


def standings(
    finished: Sequence[RankedRun], pictures: PictureScores, evidence: Evidence | None, objective: str,
    swept: Sequence[Factor], confidence: float,
) -> list[Standing]:  # fmt: skip
    """Runs gathered by their settings, best mean first, each with its paired distance from the best.

    Args:
        finished: runs, any order.
        pictures, evidence: of them; None: no picture has the objective.
        objective: what ranks.
        swept: what differs between them.
        confidence: of all distances together.
    """
    subjects = pictures.subjects
    members: dict[tuple[str, ...], list[RankedRun]] = {}
    for entry in sorted(finished, key=lambda entry: entry.run.number):
        members.setdefault(tuple(entry.settings[name] for name in pictures.parameters), []).append(entry)
    columns = {setting: _moments(entries, subjects, objective) for setting, entries in members.items()}

    def key(setting: tuple[str, ...]) -> float:
        mean = columns[setting][objective].mean if objective in columns[setting] else math.nan
        return math.inf if math.isnan(mean) else -column_of(objective).sign * mean

    order = sorted(members, key=key)
    finite = [setting for setting in order if math.isfinite(key(setting))]
    behind = behind_first(evidence, finite, confidence) if evidence and finite else {}
    rows = []
    for setting in order:
        entries, settings = members[setting], dict(zip(pictures.parameters, setting, strict=True))
        title = words(settings, swept) or (entries[0].title if len(entries) == 1 else "all runs")
        rows.append(Standing(tuple(entries), title, settings, columns[setting], behind.get(setting)))
    return rows


def _moments(entries: Sequence[RankedRun], subjects: Mapping[str, str], objective: str) -> dict[str, Moments]:
    """Of the columns that all runs have, and of what they are judged by."""
    runs = [entry.run for entry in entries]
    shared = [name for name in columns_of(runs) if all(run.report and name in run.report.rows["run"] for run in runs)]
    of = {name: mean_over(entries, subjects, methodcaller("value", name)) for name in shared}
    for name in dict.fromkeys((RECOMMEND, objective)):
        mean = mean_over(entries, subjects, methodcaller("value", name))
        if name in of or math.isfinite(mean.mean):
            of[name] = mean
    return of


def mean_over(entries: Sequence[RankedRun], subjects: Mapping[str, str], value: Callable[[Run], float]) -> Moments:
    """Mean over subjects of the mean over runs; NaN where a run has no value, for no mean would say so.

    Args:
        entries: one or more runs.
        subjects: id of a run -> its subject.
        value: of a run.
    """
    groups: dict[str, list[float]] = {}
    for entry in entries:
        groups.setdefault(subjects[entry.id], []).append(value(entry.run))
    means = [math.fsum(group) / len(group) for group in groups.values()]
    values = [*groups.values()]
    spread = moments(values[0]) if len(values) == 1 else pooled_deviation(values)
    return Moments(math.fsum(means) / len(means), spread.deviation, len(entries))
