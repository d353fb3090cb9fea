"""Which setting to take: the one that weighs subject, prompt and class best, who cannot be told from it, and the knee.

The rule is in `dbexp.evaluate.objective`, docs/recommendation.md computes it by hand from recommendation.csv.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from dbexp.compare.factors import Factor
from dbexp.compare.numbers import exact
from dbexp.compare.ranking import RankedRun
from dbexp.compare.standing import Standing, mean_over
from dbexp.compare.statistics import knee, pareto
from dbexp.evaluate.columns import RECOMMEND, column_of
from dbexp.evaluate.objective import RULE, SHARES, lacks, parts
from dbexp.runs.record import Run

RECOMMENDATION = "recommendation.csv"
_ENDS = ("dino", "clip_t", "pres")


@dataclass(frozen=True)
class Recommendation:
    """What to take, and why.

    Attributes:
        standings: settings that have the score, best first.
        shares: of each of them, mean over subjects of the mean over runs: subject, prompt, class.
        lacks: why there is none, where there is none: what would have to be measured.
        axes: the columns of the front.
        front: settings that no other beats in the means of all of these.
        knee: of the front; None where it has none, or where there are more than two columns.
    """

    standings: tuple[Standing, ...]
    shares: tuple[Mapping[str, float], ...]
    lacks: tuple[str, ...]
    axes: tuple[str, ...]
    front: tuple[Standing, ...]
    knee: Standing | None

    rule = RULE

    @property
    def first(self) -> Standing | None:
        """The recommended setting; None without one."""
        return self.standings[0] if self.standings else None

    @property
    def settings(self) -> Mapping[str, str]:
        """Of the recommended setting: parameter -> value as written; empty without one."""
        return self.first.settings if self.first else {}

    @property
    def score(self) -> float:
        """Of the recommended setting, from 0 to 1; NaN without one."""
        return self.first.moments[RECOMMEND].mean if self.first else math.nan

    @property
    def not_told_apart(self) -> tuple[Standing, ...]:
        """Other settings whose paired distance from the recommended one may be zero, training seeds included."""
        distances = [(standing, standing.behind) for standing in self.standings[1:]]
        return tuple(standing for standing, behind in distances if behind and not behind.is_significant)


def recommendation(
    by_score: Sequence[Standing], standings: Sequence[Standing], subjects: Mapping[str, str], axes: Sequence[str]
) -> Recommendation:
    """What some settings recommend.

    Args:
        by_score: settings, best score first, with their distances from the best.
        standings: the same, in any order.
        subjects: id of a run -> its subject.
        axes: columns of the front.
    """
    scored = tuple(standing for standing in by_score if math.isfinite(_point(standing, [RECOMMEND])[0]))
    shares = tuple(
        {name: mean_over(standing.entries, subjects, partial(_share, name)).mean for name in SHARES}
        for standing in scored
    )
    reports = [entry.run.report for standing in standings for entry in standing.entries if entry.run.report]
    missing = tuple(dict.fromkeys(what for report in reports for what in lacks(report.rows)))
    front = _front(standings, axes)
    index = knee([_point(standing, axes) for standing in front]) if len(axes) == 2 else None
    return Recommendation(
        scored, shares, () if scored else missing, tuple(axes), front, None if index is None else front[index]
    )


def _share(name: str, run: Run) -> float:
    return parts(run.report.rows)[name] if run.report else math.nan


def _point(standing: Standing, axes: Sequence[str]) -> list[float]:
    """The higher the better."""
    moments = [standing.moments.get(axis) for axis in axes]
    return [column_of(axis).sign * (of.mean if of else math.nan) for axis, of in zip(axes, moments, strict=True)]


def _front(standings: Sequence[Standing], axes: Sequence[str]) -> tuple[Standing, ...]:
    points = [_point(standing, axes) for standing in standings]
    unbeaten = [standing for standing, is_on in zip(standings, pareto(points), strict=True) if is_on]
    return tuple(sorted(unbeaten, key=lambda standing: _point(standing, axes)))


def recommendation_csv(of: Recommendation, finished: Sequence[RankedRun], swept: Sequence[Factor]) -> str:
    """recommendation.csv: a row per finished run with all that its score is computed from; empty for what it lacks.

    `recommended`, `not_told_apart`, `front` and `knee` are of its setting.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ends = [*(f"{name}_base" for name in _ENDS), "dino_real", "clip_t_real"]
    flags = ("recommended", "not_told_apart", "front", "knee")
    writer.writerow(["job", *(factor.name for factor in swept), *_ENDS, *ends, *SHARES, RECOMMEND, *flags])
    groups = (of.standings[:1], of.not_told_apart, of.front, [of.knee] if of.knee else [])
    members = [{entry.id for standing in group for entry in standing.entries} for group in groups]
    for entry in finished:
        assert entry.run.report is not None
        rows = entry.run.report.rows
        values = [rows["run"].get(name) for name in _ENDS] + [rows.get("base", {}).get(name) for name in _ENDS]
        values += [rows.get("real", {}).get(name) for name in ("dino", "clip_t")]
        numbers = ["" if value is None else exact(value.value) for value in values]
        numbers += [exact(part) for part in parts(rows).values()] + [exact(entry.run.value(RECOMMEND))]
        marks = [str(entry.id in group).lower() for group in members]
        writer.writerow([entry.id, *(entry.settings[factor.name] for factor in swept), *numbers, *marks])
    return buffer.getvalue()
