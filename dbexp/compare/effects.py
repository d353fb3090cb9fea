"""What finished runs support: settings over their seeds, what a step of each parameter changes, what is chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dbexp.compare.comparison import MEASURES, Effect, RankedRun, Scale, Standing
from dbexp.compare.factors import Factor, words
from dbexp.compare.ranking import Group, by_mean
from dbexp.compare.statistics import Difference, Moments, RunScores, difference, matched, pooled_deviation
from dbexp.evaluate.functional import Resampling
from dbexp.evaluate.report import Report

_CEILINGS = {"dino": "dino", "clip_i": "clip_i", "pres": "dino"}
"""Column -> column of the real images that bounds it: PRES is a similarity of DINO too."""
_SHORTEST = 0.05  # a way from base to real that is shorter makes parts of it mean nothing


def trial(entry: RankedRun) -> RunScores:
    """A finished run as statistics see it."""
    report = entry.run.report
    assert report is not None
    subject = str(entry.run.config.get("dataset.name"))
    pairs = {column: _pairs(report, subject, column) for column in MEASURES}
    values = {column: estimate.value for column, estimate in report.rows["run"].items()}
    return RunScores(entry.settings, values, pairs)


def _pairs(report: Report, subject: str, column: str) -> Mapping[tuple[str, str, int], float]:
    try:
        return report.pairs(subject, column)
    except KeyError:
        return {}


def resampling(finished: Sequence[RankedRun]) -> Resampling:
    """As the runs' own intervals were made."""
    settings = next((e.run.report.settings for e in finished if e.run.report and e.run.report.settings), {})
    how = Resampling()
    return Resampling(
        int(settings.get("resamples", how.resamples)),
        float(settings.get("confidence", how.confidence)),
        int(settings.get("seed", how.seed)),
    )


def standings(
    groups: Sequence[Group],
    entries: Sequence[RankedRun],
    trials: Mapping[Path, RunScores],
    objective: str,
    swept: Sequence[Factor],
    how: Resampling,
) -> list[Standing]:
    """Groups of runs that differ in their seed alone, best mean first, each with its paired distance from the best."""
    owner = {entry.run.folder: entry for entry in entries}
    order = by_mean(groups, objective)
    rows = []
    for group in order:
        members = tuple(owner[run.folder] for run in sorted(group.runs, key=lambda run: run.number))
        settings = {f.name: members[0].settings[f.name] for f in swept if not f.is_seed}
        moments = {column: Moments(group.mean[column], group.deviation[column], len(members)) for column in group.mean}
        behind = None if group is order[0] else _between(order[0], group, trials, objective, swept, how)
        title = words(settings, swept) or (members[0].title if len(members) == 1 else "all runs")
        rows.append(Standing(members, title, settings, moments, behind))
    return rows


def _between(
    best: Group, other: Group, trials: Mapping[Path, RunScores], column: str, swept: Sequence[Factor], how: Resampling
) -> Difference | None:
    """Paired by seed; None where the two share no picture."""
    seeds = [factor.name for factor in swept if factor.is_seed]

    def seed(trial: RunScores) -> tuple[str, ...]:
        return tuple(trial.settings[name] for name in seeds)

    of_best = {seed(trials[run.folder]): trials[run.folder] for run in best.runs}
    rivals = [trials[run.folder] for run in other.runs]
    pairs = [(of_best[seed(trial)], trial) for trial in rivals if seed(trial) in of_best]
    if not pairs or column not in MEASURES:
        return None
    behind = difference(pairs, column, how)
    return None if math.isnan(behind.estimate.low) else behind


def effects(
    swept: Sequence[Factor], finished: Sequence[RankedRun], trials: Mapping[Path, RunScores], how: Resampling
) -> list[Effect]:
    """One per step of each parameter that can be judged by pairs."""
    usable = [factor for factor in swept if not (factor.is_seed or factor.is_subject or factor.is_measure)]
    steps = [_effect(factor, low, high, finished, trials, how) for factor in usable for low, high in factor.steps()]
    return [effect for effect in steps if effect is not None]


def _effect(
    factor: Factor,
    low: str,
    high: str,
    finished: Sequence[RankedRun],
    trials: Mapping[Path, RunScores],
    how: Resampling,
) -> Effect | None:
    pairs = matched([trials[entry.run.folder] for entry in finished], factor.name, low, high)
    if not pairs:
        return None
    sizes = {id(trials[entry.run.folder]): entry.run.parameters or 0 for entry in finished}
    ratios = [sizes[id(second)] / sizes[id(first)] for first, second in pairs if sizes[id(first)] and sizes[id(second)]]
    ratio = math.fsum(ratios) / len(ratios) if ratios else 1.0
    differences = {column: difference(pairs, column, how) for column in MEASURES}
    return Effect(factor, low, high, differences, None if abs(ratio - 1) < 0.01 else ratio)


def noise(groups: Sequence[Group]) -> dict[str, Moments]:
    """Column -> spread between runs that differ in their seed alone; no columns where seeds were not repeated."""
    spreads = {
        column: pooled_deviation([[run.value(column) for run in group.runs] for group in groups]) for column in MEASURES
    }
    return {column: moments for column, moments in spreads.items() if moments.n}


def scales(finished: Sequence[RankedRun]) -> dict[str, Scale]:
    """Columns for which both the base model and real images were measured, and are apart.

    None where runs differ in their base model or in their backbones: the ends are then not the same for all.
    """
    reports = [entry.run.report for entry in finished if entry.run.report]
    measures = {str(sorted(report.backbones.items())) for report in reports}
    models = {str(entry.run.config.get("model.path")) for entry in finished}
    if len(measures) > 1 or len(models) > 1:
        return {}
    ways = {}
    for column, ceiling in _CEILINGS.items():
        ends = [
            (report.rows["base"][column].value, report.rows["real"][ceiling].value)
            for report in reports
            if column in report.rows.get("base", {}) and ceiling in report.rows.get("real", {})
        ]
        if ends:
            base, real = (math.fsum(values) / len(ends) for values in zip(*ends, strict=True))
            if real - base >= _SHORTEST:  # False for NaN
                ways[column] = Scale(base, real)
    return ways
