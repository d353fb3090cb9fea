"""What finished runs support: what a step of each parameter changes, and what is chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dbexp.compare.comparison import MEASURES, Effect, Scale
from dbexp.compare.factors import Factor
from dbexp.compare.inference.effect import Evidence, gather, step_effect
from dbexp.compare.inference.estimate import CONFIDENCE, Rule
from dbexp.compare.inference.multiple import Interaction, all_interactions, flip
from dbexp.compare.ranking import Group, RankedRun
from dbexp.compare.scores import PictureScores
from dbexp.compare.statistics import Moments, matched, pooled_deviation
from dbexp.evaluate.columns import RECOMMEND
from dbexp.evaluate.report import BACKBONES

_CEILINGS = {"dino": "dino", "clip_i": "clip_i", "pres": "dino"}
"""Column -> column of the real images that bounds it: PRES is a similarity of DINO too."""
MOST_LEVELS = 12
"""A parameter of more values, as a search gives it, is not judged step by step."""
_SHORTEST = 0.05  # a way from base to real that is shorter makes parts of it mean nothing


def evidence_of(pictures: PictureScores, objective: str) -> dict[str, Evidence]:
    """Column or objective -> what its pictures tell, of those that are compared and that pictures have."""
    columns = {column: pictures.of(column) for column in dict.fromkeys((*MEASURES, RECOMMEND, objective))}
    return {column: gather(scores) for column, scores in columns.items() if scores is not None}


def confidence_of(finished: Sequence[RankedRun]) -> float:
    """Coverage of the runs' own intervals."""
    settings = (entry.run.report.settings for entry in finished if entry.run.report)
    return float(next((of_run["confidence"] for of_run in settings if "confidence" in of_run), CONFIDENCE))


def effects(
    finished: Sequence[RankedRun], evidence: Mapping[str, Evidence], swept: Sequence[Factor], confidence: float
) -> list[Effect]:
    """One per step of each parameter that pairs of runs can judge.

    Args:
        finished: runs, any order.
        evidence: of `evidence_of`.
        swept: what differs between them.
        confidence: of each interval; one minus it is the chance that any interaction is called so for nothing.
    """
    rule = Rule(confidence)
    factors = {
        factor.name: factor
        for factor in swept
        if not (factor.is_seed or factor.is_subject or factor.is_measure) and len(factor.levels) <= MOST_LEVELS
    }
    steps = {name: factor.steps() for name, factor in factors.items()}
    columns = {column: evidence[column] for column in MEASURES if column in evidence}
    depends = {
        column: _both_ways(of_column, all_interactions(of_column, steps, confidence))
        for column, of_column in columns.items()
    }
    result = []
    for name, factor in factors.items():
        for low, high in steps[name]:
            estimates = {column: step_effect(columns[column], name, low, high, rule) for column in columns}
            differences = {column: estimate for column, estimate in estimates.items() if estimate is not None}
            of_step = {
                column: tuple(i for i in depends[column] if (i.parameter, i.low, i.high) == (name, low, high))
                for column in differences
            }
            if differences:
                size = _size(finished, name, low, high)
                result.append(Effect(factor, low, high, differences, {c: i for c, i in of_step.items() if i}, size))
    return result


def _both_ways(evidence: Evidence, tests: Sequence[Interaction]) -> list[Interaction]:
    """Significant interactions, surest first, each as either parameter sees it."""
    pairs = [(test, flip(evidence, test)) for test in tests if test.is_significant]
    return [side for pair in pairs for side in pair if side is not None]


def _size(finished: Sequence[RankedRun], parameter: str, low: str, high: str) -> float | None:
    """How many times as many parameters a LoRA has at `high`; None where that is the same or unknown."""
    sizes = [entry.run.parameters or 0 for entry in finished]
    pairs = matched([entry.settings for entry in finished], parameter, low, high)
    ratios = [sizes[second] / sizes[first] for first, second in pairs if sizes[first] and sizes[second]]
    ratio = math.fsum(ratios) / len(ratios) if ratios else 1.0
    return None if abs(ratio - 1) < 0.01 else ratio


def noise(groups: Sequence[Group]) -> dict[str, Moments]:
    """Column -> spread between runs that differ in their seed alone; no columns where seeds were not repeated."""
    spreads = {
        column: pooled_deviation([[run.value(column) for run in group.runs] for group in groups]) for column in MEASURES
    }
    return {column: spread for column, spread in spreads.items() if spread.n}


def scales(finished: Sequence[RankedRun]) -> dict[str, Scale]:
    """Columns for which both the base model and real images were measured, and are apart.

    None where runs differ in their base model or in their backbones: the ends are then not the same for all.
    """
    reports = [entry.run.report for entry in finished if entry.run.report]
    measures = {str([report.backbones.get(name) for name in BACKBONES]) for report in reports}
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
