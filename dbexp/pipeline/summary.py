"""The summary of a sweep in Weights & Biases, made from what `compare` reads back from its folders."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from dbexp import tracking
from dbexp.compare.comparison import FRONT
from dbexp.compare.ranking import front
from dbexp.compare.references import references
from dbexp.core.errors import first_line
from dbexp.evaluate.functional import Estimate
from dbexp.runs import record
from dbexp.runs.folder import RunFolder
from dbexp.runs.names import differing, titles
from dbexp.runs.record import Run, ranked

log = logging.getLogger(__name__)


def summarise(sweep: Path) -> None:
    """Bring the W&B summary run of a sweep up to date; nothing happens for one whose jobs are not tracked.

    Everything that can go wrong here is a warning: the sweep's folder has all of it, and a later call makes it good.

    Args:
        sweep: its folder.
    """
    try:
        runs = record.load(sweep)
        if runs:
            tracking.summarise(sweep, comparison(runs, record.objective_of(runs), sweep), [run.folder for run in runs])
    except (OSError, ValueError, KeyError) as error:
        log.warning("summary of %s in W&B: %s: %s", sweep, type(error).__name__, error)


def comparison(runs: Sequence[Run], objective: str, sweep: Path) -> tracking.Comparison:
    """The table of a sweep.

    Args:
        runs: of the sweep; at least one.
        objective: the column that ranks.
        sweep: paths are relative to it.
    """
    settings, named = differing(run.config for run in runs), titles({run.folder: run.overrides for run in runs})
    best_first = ranked(runs, objective)
    rows = []
    for run in [*best_first, *(run for run in runs if run.report is None)]:
        sheet = RunFolder(run.folder).contact_sheet
        rows.append(
            tracking.Row(
                title=named[run.folder],
                status=run.status,
                settings={name: run.config.get(name) for name in settings},
                values=_values(run.report.rows["run"]) if run.report else {},
                label=run.report.label if run.report else None,
                contact_sheet=sheet.relative_to(sweep).as_posix() if sheet.is_file() else None,
                error=run.error and first_line(run.error),
            )
        )
    shared = references([(named[run.folder], run.report) for run in best_first if run.report])
    rows += [tracking.Row(row.title, tracking.REFERENCE, {}, _values(row.columns)) for row in shared]
    return tracking.Comparison(
        objective=objective,
        settings=tuple(settings),
        rows=tuple(rows),
        front=tuple(named[run.folder] for run in front(best_first, FRONT)),
    )


def _values(columns: Mapping[str, Estimate]) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Column -> value and interval, None for NaN."""

    def known(number: float) -> float | None:
        return None if math.isnan(number) else number

    return {name: (known(e.value), known(e.low), known(e.high)) for name, e in columns.items()}
