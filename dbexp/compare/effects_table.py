"""effects.csv: every difference that the page speaks of, one a row; the same rows go to Weights & Biases."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from typing import TypeAlias

from dbexp.compare.changes import scope_of
from dbexp.compare.comparison import Comparison
from dbexp.compare.inference.estimate import EffectEstimate
from dbexp.compare.numbers import exact
from dbexp.evaluate.columns import RECOMMEND

EFFECTS = "effects.csv"
COLUMNS = (
    "kind", "parameter", "from", "to", "where", "metric", "value", "low", "high", "confidence", "significant", "p",
    "seeds", "prompts", "subjects", "contexts", "runs", "pictures", "speaks_of", "depends_on",
)  # fmt: skip
"""kind: effect; effect at, one value of a parameter that it depends on; interaction, how much those two differ; behind,
the objective of a setting, or its recommendation, minus that of the best. speaks_of: what the interval speaks of."""

Cell: TypeAlias = str | float | int | bool | None


def rows(comparison: Comparison) -> list[list[Cell]]:
    """A cell per column; None for what there is not."""
    lines = [*_effects(comparison)]
    by = {RECOMMEND: comparison.recommendation.standings, comparison.objective: comparison.standings}
    for objective, standings in by.items():
        for standing in standings:
            if standing.behind is not None:
                head = ("behind", "", standings[0].title, standing.title, "", objective)
                lines.append([*head, *_numbers(objective, standing.behind, math.nan), ""])
    return lines


def _effects(comparison: Comparison) -> Iterator[list[Cell]]:
    for effect in comparison.effects:
        step = (effect.factor.name, effect.low, effect.high)
        for metric, estimate in effect.differences.items():
            interactions = effect.interactions.get(metric, ())
            depends_on = " ".join(dict.fromkeys(test.other for test in interactions))
            yield ["effect", *step, "", metric, *_numbers(metric, estimate, estimate.p_value), depends_on]
            for test in interactions:
                for level, at in ((test.other_low, test.at_low), (test.other_high, test.at_high)):
                    where = f"{test.other}={level}"
                    yield ["effect at", *step, where, metric, *_numbers(metric, at, at.p_value), ""]
                where = f"{test.other} {test.other_low} → {test.other_high}"
                yield ["interaction", *step, where, metric, *_numbers(metric, test.difference, test.p_value), ""]


def _numbers(metric: str, estimate: EffectEstimate, p: float) -> list[Cell]:
    counts = estimate.counts
    return [
        *map(_number, (estimate.value, estimate.low, estimate.high)),
        estimate.rule.confidence,
        estimate.is_significant,
        _number(p) if counts.seeds > 1 else None,
        *(counts.seeds, counts.prompts, counts.subjects, counts.contexts, counts.runs, counts.pictures),
        scope_of(metric, estimate),
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(exact(value))


def effects_csv(comparison: Comparison) -> str:
    """The file."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_text(cell) for cell in row] for row in rows(comparison))
    return buffer.getvalue()


def _text(cell: Cell) -> str:
    if isinstance(cell, bool):
        return str(cell).lower()
    return "" if cell is None else exact(cell) if isinstance(cell, float) else str(cell)
