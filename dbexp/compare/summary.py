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
from dbexp.compare.comparison import Comparison
from dbexp.compare.costs import TITLES, are_known, words
from dbexp.compare.ranking import RankedRun
from dbexp.compare.recommendation import Recommendation
from dbexp.compare.statements import statements
from dbexp.core.errors import first_line
from dbexp.evaluate.columns import RECOMMEND, column_of, heading
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.objective import with_score
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
    from dbexp.compare.page.page import PAGE  # jinja and plotly

    finished = comparison.finished
    best = _run_row(finished[0]) if finished else {}
    columns, rows = _table(comparison)
    axes = comparison.recommendation.axes[:2]
    scores = [(entry, [entry.run.value(column) for column in axes]) for entry in finished]
    sheets = [(entry, RunFolder(entry.run.folder).contact_sheet) for entry in finished]
    return tracking.Summary(
        objective=comparison.objective,
        counts=dict(Counter(entry.run.status for entry in comparison.entries)),
        best={name: estimate.value for name, estimate in best.items() if not math.isnan(estimate.value)},
        title=finished[0].title if finished else None,
        label=_label(finished[0]) if finished else None,
        columns=columns,
        rows=rows,
        axes=[column_of(column).title for column in axes],
        points=[[entry.title, *xy, entry.on_front] for entry, xy in scores if not any(map(math.isnan, xy))],
        sheets=[[entry.title, path.relative_to(sweep).as_posix()] for entry, path in sheets if path.is_file()],
        effect_columns=[*effects_table.COLUMNS],
        effects=effects_table.rows(comparison),
        cost_columns=["setting", *TITLES],
        costs=_costs(comparison),
        recommendation=_recommendation(comparison.recommendation),
        statements=[[statement.subject, statement.sentence] for statement in statements(comparison)],
        page=PAGE,
        best_runs=_best_runs(comparison.recommendation, sweep),
    )


def _best_runs(of: Recommendation, sweep: Path) -> list[str]:
    """Of the runs of the recommended setting, the first of each subject and model, best first."""
    found: dict[tuple[Any, Any], Path] = {}
    entries = sorted(of.first.entries, key=lambda entry: -entry.run.value(RECOMMEND)) if of.first else []
    for entry in entries:
        found.setdefault((entry.run.config.get("dataset.name"), entry.run.config.get("model.name")), entry.run.folder)
    return [folder.relative_to(sweep).as_posix() for folder in found.values()]


def _costs(comparison: Comparison) -> list[list[str]]:
    if not are_known(comparison.finished):
        return []
    costs = [(standing.title, [entry.run.costs for entry in standing.entries]) for standing in comparison.standings]
    return [[title, *words(of)] for title, of in costs]


def _recommendation(of: Recommendation) -> dict[str, Any]:
    """Numbers and words for the summary of the W&B run; empty without one."""
    if of.first is None:
        return {}
    return {
        "setting": of.first.title,
        "score": of.score,
        **of.shares[0],
        "not told apart": "; ".join(standing.title for standing in of.not_told_apart),
        "knee": of.knee.title if of.knee else None,
        "rule": of.rule,
    }


def _table(comparison: Comparison) -> tuple[list[str], list[list[Any]]]:
    """Headings and cells: runs, then what they are measured against."""
    entries, references = comparison.entries, comparison.references
    settings = differing(entry.run.config for entry in entries)
    estimates = [*map(_run_row, entries), *(reference.columns for reference in references)]
    scored = [RECOMMEND] if comparison.recommendation.first else []
    numbers = [(column, "value") for column in (*comparison.columns, *scored)]
    numbers += [  # what is counted has no interval
        (column, end)
        for column in comparison.columns
        for end in ("low", "high")
        if any(_cell(row, column, end) is not None for row in estimates)
    ]
    headings = ["run", "status", *settings]
    headings += [heading(column) if field == "value" else f"{column} {field}" for column, field in numbers]
    headings += ["Pareto front", "label", "error"]
    rows: list[list[Any]] = []
    for entry in entries:
        row = [entry.title, entry.run.status, *(_setting(entry.run.config.get(name)) for name in settings)]
        row += [_cell(_run_row(entry), column, field) for column, field in numbers]
        row += ["yes" if entry.on_front else "", _label(entry), entry.run.error and first_line(entry.run.error)]
        rows.append(row)
    for reference in references:
        row = [reference.title, "reference", *[None] * len(settings)]
        row += [_cell(reference.columns, column, field) for column, field in numbers]
        rows.append([*row, "", None, None])
    return headings, rows


def _run_row(entry: RankedRun) -> Mapping[str, Estimate]:
    return with_score(entry.run.report.rows) if entry.run.report else {}


def _label(entry: RankedRun) -> str | None:
    return entry.run.report.label if entry.run.report else None


def _cell(row: Mapping[str, Estimate], column: str, field: str) -> float | None:
    """A number of a row; None for what it lacks, where we have NaN."""
    value = float(getattr(row[column], field)) if column in row else math.nan
    return None if math.isnan(value) else value


def _setting(value: Any) -> Any:
    """A parameter's value as a cell of a W&B table, which has no lists."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)
