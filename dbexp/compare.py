"""Runs side by side: everything is read back from the folders of a sweep, so a table can be made at any time.

A sweep's folder is scanned, never remembered: a job that failed, or that another machine ran, is found like any other.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbexp import table
from dbexp.config import flatten
from dbexp.metrics import COLUMNS, Report
from dbexp.store import write_atomic

RESULTS = "results.csv"
_QUIET = ("tracking", "store", "experiment", "objective")
"""Settings that say where and how a run is kept, not what it is."""


@dataclass(frozen=True)
class Run:
    """One job of a sweep, as its folder tells it.

    Attributes:
        folder: of the job.
        name: as in the dashboard.
        status: finished, failed or stopped.
        overrides: as on the command line.
        config: every parameter by dotted name.
        report: the metric table; None unless finished.
        error: why it failed.
    """

    folder: Path
    name: str
    status: str
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    report: Report | None
    error: str | None

    @property
    def number(self) -> int:
        """The job's number in its sweep, -1 for a folder that is called otherwise."""
        return int(self.folder.name) if self.folder.name.isdigit() else -1


def load(sweep: Path) -> list[Run]:
    """Every job of a sweep that has left a result, by number and name of its folder.

    Raises:
        OSError, ValueError, KeyError: a file of a run is damaged.
    """
    found = [path.parent for path in sweep.glob("*/result.json")]
    if (sweep / "result.json").is_file():
        found.append(sweep)
    return sorted((read(folder) for folder in found), key=lambda run: (run.number, run.folder.name))


def read(folder: Path) -> Run:
    """The job of one folder; raises as `load` does."""
    result = json.loads((folder / "result.json").read_text())
    name, status, overrides = result["name"], result["status"], tuple(result["overrides"])
    if status != "finished":
        return Run(folder, name, status, overrides, flatten(result["config"]), None, result["error"])
    record = json.loads((folder / "evaluate" / "metrics.json").read_text())
    report = Report.from_json(json.dumps(record["report"]))
    return Run(folder, name, status, overrides, flatten(record["config"]), report, None)


def what_differs(overrides: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Of the overrides of each run, those that not all runs have, in short.

    Example:
        >>> what_differs([["lora.rank=4", "seed=1"], ["lora.rank=8", "seed=1"]])
        [('rank=4',), ('rank=8',)]
    """
    common = set(overrides[0]).intersection(*overrides[1:]) if overrides else set()
    telling = [[override.partition("=") for override in own if override not in common] for own in overrides]
    keys = {key for own in telling for key, _, _ in own}
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}
    return [tuple(short[key] + sign + value for key, sign, value in own) for own in telling]


def differing(runs: Sequence[Run]) -> list[str]:
    """Names of the parameters that are not the same in all runs, `seed` for the five that follow it."""
    configs = [run.config for run in runs]
    names = dict.fromkeys(name for config in configs for name in config)
    found = [
        name
        for name in names
        if name.split(".")[0] not in _QUIET and len({json.dumps(config.get(name)) for config in configs}) > 1
    ]
    follows = [name for name in found if name.startswith("seeds.")]
    one_seed = all(len({config.get(name) for name in [*follows, "seed"]}) == 1 for config in configs)
    return [name for name in found if not (name.startswith("seeds.") and one_seed)]


def titles(runs: Sequence[Run]) -> dict[Path, str]:
    """Folder -> a short title that tells a run from the others: its number, and what differs."""
    told = what_differs([run.overrides for run in runs])
    return {
        run.folder: " ".join((f"{run.folder.name}:", *words)) if words else run.folder.name
        for run, words in zip(runs, told, strict=True)
    }


def ranked(runs: Iterable[Run], objective: str) -> list[Run]:
    """Finished runs, best first by a column of the metric table; runs without a value last; ties by number."""
    sign = -1 if COLUMNS[objective].better == "lower" else 1

    def key(run: Run) -> tuple[bool, float, int]:
        assert run.report is not None
        value = run.report.rows["run"][objective].value if objective in run.report.rows["run"] else math.nan
        return math.isnan(value), 0.0 if math.isnan(value) else -sign * value, run.number

    return sorted((run for run in runs if run.report), key=key)


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in nothing but their seed.

    Attributes:
        runs: one or more.
        mean, deviation: column -> mean over seeds, and sample standard deviation (NaN for one seed).
    """

    runs: tuple[Run, ...]
    mean: Mapping[str, float]
    deviation: Mapping[str, float]


def over_seeds(runs: Sequence[Run]) -> list[Group]:
    """Runs gathered by everything but their seeds, in the order of their first member."""
    gathered: dict[str, list[Run]] = {}
    for run in runs:
        if run.report is None:
            continue
        rest = {
            name: value
            for name, value in run.config.items()
            if name != "seed" and name.split(".")[0] not in (*_QUIET, "seeds")
        }
        gathered.setdefault(json.dumps(rest, sort_keys=True), []).append(run)
    return [Group(tuple(members), *_moments(members)) for members in gathered.values()]


def _moments(members: Sequence[Run]) -> tuple[dict[str, float], dict[str, float]]:
    mean, deviation = {}, {}
    for column in COLUMNS:
        values = [
            run.report.rows["run"][column].value for run in members if run.report and column in run.report.rows["run"]
        ]
        if not values:
            continue
        mean[column] = sum(values) / len(values)
        squares = sum((value - mean[column]) ** 2 for value in values)
        deviation[column] = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
    return mean, deviation


def line(run: Run) -> str:
    """The paper's columns of a run in one line, or why there are none."""
    if run.report is None:
        return f"{run.status}: {_first_line(run.error or 'no reason is on record')}"
    row = run.report.rows["run"]
    return "  ".join(f"{table.TITLES[column]} {_short(row[column].value)}" for column in table.PAPER if column in row)


def show(runs: Sequence[Run], objective: str, console: Console | None = None) -> None:
    """Print the table of the finished runs, best first; where only seeds differ, their mean and deviation below it.

    Args:
        runs: of one sweep.
        objective: the column that ranks; of several, comma separated, the first.
        console: where to; None: standard output.
    """
    finished = ranked(runs, _first(objective))
    if not finished:
        return
    console = console or Console()
    named = titles(finished)
    table.show([(named[run.folder], run.report) for run in finished if run.report], console)
    groups = over_seeds(finished)
    if any(len(group.runs) > 1 for group in groups):
        console.print()
        print_grid("mean ± standard deviation over seeds", _seeds_table(groups, _first(objective)), console)


def print_grid(title: str, grid: Table, console: Console) -> None:
    """Print a titled table: with rules on a terminal, as bare lines that are never folded elsewhere."""
    grid.pad_edge, grid.show_edge, grid.padding = False, False, (0, 2, 0, 0)
    grid.box = box.SIMPLE_HEAD if console.is_terminal else None
    page = (Text(title, style="bold"), Text(), grid)
    if console.is_terminal:
        console.print(*page, sep="\n")
        return
    buffer = io.StringIO()
    Console(file=buffer, width=10_000, color_system=None, legacy_windows=False).print(*page, sep="\n")
    written = "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())
    console.file.write(written.encode(console.encoding, "replace").decode(console.encoding))


def _seeds_table(groups: Sequence[Group], objective: str) -> Table:
    """A row per group: mean and sample standard deviation over its seeds."""
    sign = -1 if COLUMNS[objective].better == "lower" else 1

    def rank(group: Group) -> float:
        value = group.mean.get(objective, math.nan)
        return math.inf if math.isnan(value) else -sign * value

    told = what_differs([[word for word in group.runs[0].overrides if not _is_seed(word)] for group in groups])
    names = {group.runs[0].folder: " ".join(words) or "all runs" for group, words in zip(groups, told, strict=True)}
    grid = Table()
    for heading in ("", "seeds", *(table.heading(column) for column in table.PAPER)):
        grid.add_column(heading, overflow="fold")
    for group in sorted(groups, key=rank):
        cells = [_spread(group, column) for column in table.PAPER]
        grid.add_row(Text(names[group.runs[0].folder]), str(len(group.runs)), *cells)
    return grid


def _spread(group: Group, column: str) -> str:
    mean, deviation = (moment.get(column, math.nan) for moment in (group.mean, group.deviation))
    return _short(mean) if math.isnan(deviation) else f"{_short(mean)} ± {_short(deviation)}"


def _is_seed(override: str) -> bool:
    name = override.partition("=")[0]
    return name == "seed" or name.startswith("seeds.")


def _first(objective: str) -> str:
    return objective.split(",")[0].strip()


def _first_line(text: str) -> str:
    return (text.strip() or "no message").splitlines()[0]


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


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
        write_atomic(sweep / RESULTS, csv_text(runs, _first(objective)))
    return runs
