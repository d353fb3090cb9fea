"""A comparison as the summary run of its sweep shows it in Weights & Biases."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbexp import tracking
from dbexp.compare import effects_table
from dbexp.compare.comparison import FRONT, Comparison
from dbexp.compare.ranking import RankedRun
from dbexp.compare.statements import statements
from dbexp.core.errors import first_line
from dbexp.evaluate.columns import COLUMNS, heading
from dbexp.evaluate.functional import Estimate
from dbexp.runs.folder import RunFolder
from dbexp.runs.names import differing

log = logging.getLogger(__name__)


def summarise(comparison: Comparison) -> None:
    """Bring the W&B summary run of a sweep up to date.

    Nothing happens for one whose runs are not tracked, nor for a single run that is compared with itself.

    Everything that can go wrong here is a warning: the sweep's folder has all of it, and a later call makes it good.

    Args:
        comparison: of one sweep.
    """
    (sweep,) = comparison.sweeps.values()
    folders = [entry.run.folder for entry in comparison.entries]
    if sweep in folders:
        return
    try:
        tracking.summarise(sweep, summary(comparison, sweep), folders)
    except (OSError, ValueError, KeyError) as error:
        log.warning("summary of %s in W&B: %s", sweep, first_line(error, typed=True))


def summary(comparison: Comparison, sweep: Path) -> tracking.Summary:
    """What the summary run shows: the numbers of results.csv and effects.csv, the sentences and the front of the page.

    Args:
        comparison: of one sweep.
        sweep: its folder, which paths are relative to.
    """
    entries, finished = comparison.entries, comparison.finished
    settings = differing(entry.run.config for entry in entries)
    estimates = [_run_row(entry) for entry in entries] + [reference.columns for reference in comparison.references]
    ends = [
        (column, end)
        for column in comparison.columns
        for end in ("low", "high")
        if any(_cell(row, column, end) is not None for row in estimates)
    ]
    best = finished[0] if finished else None

    def numbers(row: Mapping[str, Estimate]) -> list[float | None]:
        values = [_cell(row, column, "value") for column in comparison.columns]
        return values + [_cell(row, column, end) for column, end in ends]

    return tracking.Summary(
        objective=comparison.objective,
        counts=dict(Counter(entry.run.status for entry in entries)),
        best={} if best is None else {name: e.value for name, e in _run_row(best).items() if not math.isnan(e.value)},
        title=best.title if best else None,
        label=best.run.report.label if best and best.run.report else None,
        columns=[
            *("run", "status", *settings, *map(heading, comparison.columns)),
            *(f"{column} {end}" for column, end in ends),
            *("Pareto front", "label", "error"),
        ],
        rows=[
            *(
                [
                    *(entry.title, entry.run.status),
                    *(_setting(entry.run.config.get(name)) for name in settings),
                    *(*numbers(_run_row(entry)), *_notes(entry)),
                ]
                for entry in entries
            ),
            *(
                [row.title, "reference", *[None] * len(settings), *numbers(row.columns), "", None, None]
                for row in comparison.references
            ),
        ],
        axes=[COLUMNS[column].title for column in FRONT],
        points=[
            [entry.title, *(entry.run.value(column) for column in FRONT), entry.on_front]
            for entry in finished
            if not any(math.isnan(entry.run.value(column)) for column in FRONT)
        ],
        sheets=[
            [entry.title, sheet.relative_to(sweep).as_posix()]
            for entry in finished
            if (sheet := RunFolder(entry.run.folder).contact_sheet).is_file()
        ],
        effect_columns=[*effects_table.COLUMNS],
        effects=effects_table.rows(comparison),
        statements=[[statement.subject, statement.sentence] for statement in statements(comparison)],
    )


def _run_row(entry: RankedRun) -> Mapping[str, Estimate]:
    return entry.run.report.rows["run"] if entry.run.report else {}


def _notes(entry: RankedRun) -> list[str | None]:
    """Whether it is on the front, its label, why it failed."""
    label = entry.run.report.label if entry.run.report else None
    return ["yes" if entry.on_front else "", label, entry.run.error and first_line(entry.run.error)]


def _cell(row: Mapping[str, Estimate], column: str, field: str) -> float | None:
    """A number of a row; None for what it lacks, where we have NaN."""
    value = float(getattr(row[column], field)) if column in row else math.nan
    return None if math.isnan(value) else value


def _setting(value: Any) -> Any:
    """A parameter's value as a cell of a W&B table, which has no lists."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)
