"""results.csv: a line per job, best first."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from dbexp.compare.numbers import exact
from dbexp.core.files import write_atomic
from dbexp.evaluate.columns import PAPER, RECOMMEND
from dbexp.runs.names import differing, setting
from dbexp.runs.record import UNFINISHED, Run, columns_of, job_name, ranked, scan

RESULTS = "results.csv"


def csv_text(runs: Sequence[Run], objective: str, names: Mapping[Path, str] | None = None) -> str:
    """The table as CSV: a line per job, finished ones first and best first; what differs, then every column.

    Times and paths of folders are left out, so that the same sweep gives the same bytes.

    Args:
        runs: of one sweep.
        objective: what ranks; the paper's first column where that is the recommendation, which is no column here.
        names: folder -> name of a job, where they are of several sweeps; None: the folder's own.
    """
    settings = differing(run.config for run in runs)
    columns = columns_of(runs)
    finished = ranked(runs, PAPER[0] if objective == RECOMMEND else objective)
    ends = [
        (column, end)
        for column in columns
        for end in ("low", "high")
        if any(_cell(run, column, end) for run in finished)  # what is counted has no interval
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        ["job", "status", *settings, *columns, *(f"{column}_{end}" for column, end in ends), "label", "error"]
    )
    for run in [*finished, *(run for run in runs if run.report is None)]:
        parameters = [setting(run.config[name]) if name in run.config else "" for name in settings]
        values = [_cell(run, column, "value") for column in columns]
        intervals = [_cell(run, column, end) for column, end in ends]
        label = (run.report.label if run.report else None) or ""
        job = names[run.folder] if names else run.folder.name
        writer.writerow([job, run.status, *parameters, *values, *intervals, label, run.error or ""])
    return buffer.getvalue()


def _cell(run: Run, column: str, field: str) -> str:
    """As `exact` writes it; empty for what a run lacks."""
    row = run.report.rows["run"] if run.report else {}
    return exact(float(getattr(row[column], field))) if column in row else ""


def write_results(sweep: Path, objective: str) -> list[Run]:
    """Write results.csv of a sweep anew from what its folders hold, atomically: a line per job that has ended.

    Args:
        sweep: its folder.
        objective: as in `csv_text`.

    Returns:
        The runs, damaged ones among them.

    Raises:
        OSError: the folder cannot be written.
    """
    runs = [run for run in scan(sweep) if run.status != UNFINISHED]
    if runs:
        names = {run.folder: job_name(run.folder, sweep) for run in runs}
        write_atomic(sweep / RESULTS, csv_text(runs, objective, names))
    return runs
