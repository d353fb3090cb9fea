"""results.csv: a line per job, best first."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dbexp.compare.differences import differing
from dbexp.compare.runs import Run, first_of, load, ranked
from dbexp.metrics import COLUMNS
from dbexp.store import write_atomic

RESULTS = "results.csv"


def csv_text(runs: Sequence[Run], objective: str) -> str:
    """The table as CSV: a line per job, finished ones first and best first; what differs, then every column.

    Times and paths of folders are left out, so that the same sweep gives the same bytes.

    Args:
        runs: of one sweep.
        objective: the column that ranks.
    """
    names = differing(runs)
    columns = [name for name in COLUMNS if any(run.report and name in run.report.rows["run"] for run in runs)]
    finished = ranked(runs, objective)
    ends = [
        (column, end)
        for column in columns
        for end in ("low", "high")
        if any(_cell(run, column, end) for run in finished)  # what is counted has no interval
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["job", "status", *names, *columns, *(f"{column}_{end}" for column, end in ends), "label", "error"])
    for run in [*finished, *(run for run in runs if run.report is None)]:
        settings = [_setting(run.config.get(name)) for name in names]
        values = [_cell(run, column, "value") for column in columns]
        intervals = [_cell(run, column, end) for column, end in ends]
        label = (run.report.label if run.report else None) or ""
        writer.writerow([run.folder.name, run.status, *settings, *values, *intervals, label, run.error or ""])
    return buffer.getvalue()


def _setting(value: Any) -> str:
    """A parameter as one would write it on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cell(run: Run, column: str, field: str) -> str:
    """Nine significant digits: backbones compute in single precision. Empty for NaN and for what a run lacks."""
    if run.report is None or column not in run.report.rows["run"]:
        return ""
    value = float(getattr(run.report.rows["run"][column], field))
    return "" if math.isnan(value) else f"{value:.9g}"


def write_results(sweep: Path, objective: str) -> list[Run]:
    """Write results.csv of a sweep anew from what its folders hold, atomically.

    Args:
        sweep: its folder.
        objective: column that ranks the runs; of several, comma separated, the first.

    Returns:
        The runs.

    Raises:
        OSError, ValueError, KeyError: a file of a run is damaged, or the folder cannot be written.
    """
    runs = load(sweep)
    if runs:
        write_atomic(sweep / RESULTS, csv_text(runs, first_of(objective)))
    return runs
