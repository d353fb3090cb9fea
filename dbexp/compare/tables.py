"""The cells of the tables, as written and exact, with the best of each column."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dbexp.compare.comparison import Comparison
from dbexp.compare.numbers import exact, written
from dbexp.evaluate.columns import COLUMNS
from dbexp.evaluate.functional import Estimate


@dataclass(frozen=True)
class Cell:
    """A number of a table.

    Attributes:
        column: of the metric table.
        value, low, high: NaN for what is missing.
        reason: why there is no value.
    """

    column: str
    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str | None = None

    @property
    def exact(self) -> str:
        """As in results.csv."""
        return exact(self.value)

    @property
    def text(self) -> str:
        """As people read it."""
        return written(self.column, self.value)


def row_cells(row: Mapping[str, Estimate], columns: Sequence[str]) -> list[Cell]:
    """The cells of a row; NaN for columns that it lacks."""
    cells = []
    for column in columns:
        found = row.get(column)
        cells.append(
            Cell(column, math.nan) if found is None else Cell(column, found.value, found.low, found.high, found.reason)
        )
    return cells


def best_cells(comparison: Comparison) -> dict[str, set[str]]:
    """Column -> the exact values that are best as written, so that a tie on paper is a tie."""
    rows = [entry.run.report.rows["run"] for entry in comparison.finished if entry.run.report]
    return {
        column: best_of(column, (row[column].value for row in rows if column in row)) for column in comparison.columns
    }


def best_of(column: str, values: Iterable[float]) -> set[str]:
    """The exact forms of the values that are best as written; none where no value beats another."""
    choose = {"higher": max, "lower": min}.get(COLUMNS[column].better)
    there = [value for value in values if not math.isnan(value)]
    if choose is None or len({written(column, value) for value in there}) < 2:
        return set()
    best = written(column, choose(there))
    return {exact(value) for value in there if written(column, value) == best}
