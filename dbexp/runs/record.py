"""The jobs of a sweep, read back from its folders.

A folder is scanned, never remembered: a job that failed, or that another machine ran, is found like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dbexp.config.check import flatten
from dbexp.evaluate.columns import COLUMNS
from dbexp.evaluate.report import Report
from dbexp.runs.differences import QUIET

DAMAGED, UNFINISHED = "damaged", "unfinished"
"""What `scan` says of a job whose result cannot be read, or is not there."""


@dataclass(frozen=True)
class Run:
    """One job of a sweep, as its folder tells it.

    Attributes:
        folder: of the job.
        name: as in the dashboard.
        status: finished, failed, diverged or stopped; of `scan` also damaged or unfinished.
        overrides: as on the command line.
        config: every parameter by dotted name; empty when it cannot be read.
        report: the metric table; None unless finished.
        error: why it failed.
        parameters: of its LoRA; None when it is not on record.
    """

    folder: Path
    name: str
    status: str
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    report: Report | None
    error: str | None
    parameters: int | None = None

    @property
    def number(self) -> int:
        """The job's number in its sweep, -1 for a folder that is called otherwise."""
        return int(self.folder.name) if self.folder.name.isdigit() else -1

    def value(self, column: str) -> float:
        """Of the metric table; NaN for what the run lacks."""
        if self.report is None or column not in self.report.rows["run"]:
            return math.nan
        return self.report.rows["run"][column].value


def load(sweep: Path) -> list[Run]:
    """Every job of a sweep that has left a result, by number and name of its folder.

    Raises:
        OSError, ValueError, KeyError: a file of a run is damaged.
    """
    found = [path.parent for path in sweep.glob("*/result.json")]
    if (sweep / "result.json").is_file():
        found.append(sweep)
    return sorted((read(folder) for folder in found), key=lambda run: (run.number, run.folder.name))


def scan(sweep: Path) -> list[Run]:
    """Every job of a sweep that has begun, in the order of `load`, whatever state its folder is in.

    A job whose files cannot be read is `damaged` and says why; one without a result is `unfinished`.
    """
    folders = {path.parent for name in ("result.json", ".hydra/overrides.yaml") for path in sweep.glob(f"*/{name}")}
    folders = {folder.parent if folder.name == ".hydra" else folder for folder in folders}
    if (sweep / "result.json").is_file():
        folders.add(sweep)
    return sorted((_read_any(folder) for folder in folders), key=lambda run: (run.number, run.folder.name))


def _read_any(folder: Path) -> Run:
    if not (folder / "result.json").exists():
        error = "it has left no result: it still runs, or was killed; the sweep's command goes on with it"
        return Run(folder, folder.name, UNFINISHED, (), {}, None, error)
    try:
        return read(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"{type(error).__name__}: {error}"
        return Run(folder, folder.name, DAMAGED, (), {}, None, f"its files cannot be read ({said}); run it again")


def read(folder: Path) -> Run:
    """The job of one folder; raises as `load` does."""
    return _read_unchanged(folder, *(_state(folder / name) for name in ("result.json", "evaluate/metrics.json")))


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file's content, for files that are replaced and never written into."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


# A sweep looks at all of its jobs after each of them.
@lru_cache(maxsize=256)
def _read_unchanged(folder: Path, *_states: tuple[int, int, int] | None) -> Run:
    result = json.loads((folder / "result.json").read_text())
    name, status, overrides = result["name"], result["status"], tuple(result["overrides"])
    if status != "finished":
        return Run(folder, name, status, overrides, flatten(result["config"]), None, result["error"])
    record = json.loads((folder / "evaluate" / "metrics.json").read_text())
    report = Report.from_plain(record["report"])
    parameters = record.get("train", {}).get("parameters")
    total = sum(parameters.values()) if isinstance(parameters, dict) else parameters
    return Run(folder, name, status, overrides, flatten(record["config"]), report, None, total)


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
            if name != "seed" and name.split(".")[0] not in (*QUIET, "seeds")
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


def first_of(objective: str) -> str:
    """The column that ranks: of several, comma separated, the first."""
    return objective.split(",")[0].strip()
