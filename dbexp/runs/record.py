"""Runs read back from their folders: all of a sweep, ranked; and one whose LoRA is to be used, or the best of a sweep.

A folder is scanned, never remembered: a run that failed, or that another machine ran, is found like any other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from dbexp.config import fields, template
from dbexp.config.families import FAMILIES, SIZE_MULTIPLE
from dbexp.config.schema import Config, ModelConfig
from dbexp.config.values import flatten, objectives, structured
from dbexp.core.errors import ConfigError, Problems, first_line
from dbexp.core.hashing import file_hash
from dbexp.evaluate import objective as judged
from dbexp.evaluate.columns import PAPER, RECOMMEND, column_of, in_order
from dbexp.evaluate.report import Report
from dbexp.runs import foreign
from dbexp.runs.costs import NO_COSTS, Costs, costs_of
from dbexp.runs.folder import RunFolder

# what a record of the wrong shape raises where it is taken apart
_MALFORMED = (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError)

DAMAGED, UNFINISHED = "damaged", "unfinished"
"""What `scan` says of a run whose result cannot be read, or is not there."""


@dataclass(frozen=True)
class Run:
    """One run, as its folder tells it.

    Attributes:
        folder: of the run.
        name: as in the dashboard.
        status: finished, failed, diverged, stopped (by a signal) or pruned (by halving); of `scan` also damaged or
            unfinished.
        overrides: as on the command line.
        config: every parameter by dotted name; empty when it cannot be read.
        report: the metric table; None unless finished.
        error: why it did not finish.
        parameters: of its LoRA; None when it is not on record.
        provenance: code, libraries, machine and time, as on record; its values may be of any type.
        costs: what it took, as far as it is on record.
    """

    folder: Path
    name: str
    status: str
    overrides: tuple[str, ...]
    config: Mapping[str, Any]
    report: Report | None
    error: str | None
    parameters: int | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    costs: Costs = NO_COSTS

    @property
    def number(self) -> int:
        """The run's number in its sweep, -1 for a folder that is called otherwise."""
        return int(self.folder.name) if self.folder.name.isdecimal() else -1

    def value(self, name: str) -> float:
        """Of a column of the metric table, or of another objective; NaN for what the run lacks."""
        return math.nan if self.report is None else judged.value(self.report.rows, name)


def load(sweep: Path) -> list[Run]:
    """Every run of a sweep that has left a result, by number and name of its folder.

    Raises:
        OSError, ValueError: a file of a run is damaged.
    """
    folders = [folder for folder in _folders(sweep) if RunFolder(folder).result.is_file()]
    return sorted(map(read, folders), key=_order)


def scan(sweep: Path) -> list[Run]:
    """Every run of a sweep that has begun, in the order of `load`, whatever state its folder is in.

    A run whose files cannot be read is `damaged` and says why; one without a result is `unfinished`.
    """
    folders = [folder for folder in _folders(sweep) if folder != sweep or RunFolder(folder).result.is_file()]
    return sorted(map(_read_any, folders), key=_order)


def _folders(sweep: Path) -> list[Path]:
    """Every folder of a run, at a sweep's folder or however deep below it; links and other sweeps are not entered."""
    runs, waiting = [], [sweep]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                below = {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        except OSError:
            continue
        files = RunFolder(folder)
        if folder != sweep and files.sweep.is_file():
            continue
        if files.result.is_file() or files.overrides.is_file():
            runs.append(folder)
            below -= {stage.name for stage in files.stages}
        waiting += [folder / name for name in below]
    return runs


def job_name(folder: Path, sweep: Path) -> str:
    """Of a run in the tables of its sweep: the path of its folder there, which mostly is its number."""
    return folder.name if folder == sweep else folder.relative_to(sweep).as_posix()


def _order(run: Run) -> tuple[int, str]:
    return run.number, run.folder.as_posix()


def _read_any(folder: Path) -> Run:
    if not RunFolder(folder).result.exists():
        error = "it has left no result: it still runs, or was killed; the sweep's command goes on with it"
        return Run(folder, folder.name, UNFINISHED, (), {}, None, error)
    try:
        return read(folder)
    except (OSError, ValueError) as error:
        reason = f"its files cannot be read ({type(error).__name__}: {error}); run it again"
        return Run(folder, folder.name, DAMAGED, (), {}, None, reason)


def read(folder: Path) -> Run:
    """The run of one folder.

    Raises:
        OSError: a file cannot be read, or is not there.
        ValueError: one is not what dbexp writes.
    """
    run = RunFolder(folder)
    try:
        return _read_unchanged(run, _state(run.result), _state(run.metrics))
    except _MALFORMED as error:
        raise ValueError(f"a record is not what dbexp writes: {first_line(error, typed=True)}") from error


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file's content, for files that are replaced and never written into."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


# A sweep looks at all of its runs after each of them.
@lru_cache(maxsize=256)
def _read_unchanged(files: RunFolder, *_states: tuple[int, int, int] | None) -> Run:
    folder, result = files.path, foreign.read_json(files.path, files.result)
    name, status, overrides = result["name"], result["status"], result["overrides"]
    if not foreign.fits((name, status, *overrides), tuple[str]) or isinstance(overrides, str):
        raise ValueError(f"{files.result.name} is no record that dbexp wrote")
    if status != "finished":
        error = result["error"]
        if not foreign.fits(error, str | None):
            raise ValueError(f"{files.result.name} is no record that dbexp wrote")
        return Run(folder, name, status, tuple(overrides), flatten(result["config"]), None, error)
    record = foreign.read_json(folder, files.metrics)
    report = Report.from_plain(record["report"])
    foreign.check_report(report)
    parameters = record.get("train", {}).get("parameters")
    total = sum(parameters.values()) if isinstance(parameters, dict) else parameters
    if not foreign.fits(total, int | None):
        raise ValueError("train.parameters is no number")
    provenance = record.get("provenance")
    if not isinstance(provenance, dict):
        provenance = {}
    config, costs = flatten(record["config"]), costs_of(record, total)
    return Run(folder, name, status, tuple(overrides), config, report, None, total, provenance, costs)


def ranked(runs: Iterable[Run], objective: str) -> list[Run]:
    """Finished runs, best first by an objective; runs without a value last; ties by number.

    By the paper's first column where it is the recommendation that no run has.
    """
    finished = [run for run in runs if run.report]
    name = ranking(finished, objective)
    sign = column_of(name).sign

    def key(run: Run) -> tuple[bool, float, int]:
        value = run.value(name)
        return math.isnan(value), 0.0 if math.isnan(value) else -sign * value, run.number

    return sorted(finished, key=key)


def ranking(runs: Iterable[Run], objective: str) -> str:
    """What ranks runs by an objective: itself, or the paper's first column for a recommendation that no run has."""
    can = objective != RECOMMEND or any(not math.isnan(run.value(objective)) for run in runs)
    return objective if can else PAPER[0]


def objectives_of(runs: Iterable[Run]) -> tuple[str, ...]:
    """What the first run names that names any; else the recommendation."""
    named = (tuple(objectives(run.config.get("objective"))) for run in runs)
    return next((names for names in named if names), (RECOMMEND,))


def objective_of(runs: Iterable[Run]) -> str:
    """What ranks runs, unless somebody asks for another: the first objective that they name."""
    return objectives_of(runs)[0]


def columns_of(runs: Iterable[Run]) -> tuple[str, ...]:
    """The columns that finished runs have, in the order of the table."""
    return tuple(in_order(name for run in runs if run.report for name in run.report.rows["run"]))


# -- runs whose LoRA is to be used ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainedRun:
    """A run whose LoRA is there, whether it was evaluated or not.

    Attributes:
        folder: of the run.
        name: as in the dashboard; the folder's name for a run that did not end.
        config: that it was trained with.
        lora: the file.
        chosen: why this one, if it was picked from a sweep.
        overrides: as on the command line; none for a run that did not end.
        report: its metrics; None: it was not evaluated.
        elsewhere: whether there is no run, and `lora` is a file of any trainer.
    """

    folder: Path
    name: str
    config: Config
    lora: Path
    chosen: str | None = None
    overrides: tuple[str, ...] = ()
    report: Report | None = None
    elsewhere: bool = False

    @property
    def lora_hash(self) -> str:
        """sha256 of the LoRA file."""
        return file_hash(self.lora)


def open_runs(folders: Sequence[str], objective: str | None) -> list[TrainedRun]:
    """The runs of some folders, in order.

    Args:
        folders: of runs, or of sweeps, which stand for their best run.
        objective: column that picks the best; None: the one that the sweep's runs name.

    Raises:
        ConfigError: with the problems of every folder.
    """
    runs, problems = [], Problems()
    for folder in folders:
        try:
            runs.append(open_run(Path(folder).expanduser(), objective))
        except ConfigError as error:
            problems.messages += [f"run={folder}: {problem}" for problem in error.problems]
    problems.raise_if_any()
    return runs


def require_known_model(run: TrainedRun, model: ModelConfig, named: str | None) -> None:
    """Let nothing be fetched because a run's record, which may be a stranger's, says so.

    Args:
        run: whose record it is.
        model: that is to be loaded.
        named: what the user gave in place of the record's.

    Raises:
        ConfigError: naming what would be fetched.
    """
    if strange := foreign.unnamed_models(model, [named] if named else []):
        raise ConfigError(
            f"run={run.folder}: its base model is {path} of the hub, which only the record of the run names and "
            f"nothing on this machine knows; if you trust it, say so with model={path}, or `hf download {path}`"
            for path in strange
        )


def open_run(folder: Path, objective: str | None) -> TrainedRun:
    """The run of one folder, or the best of a sweep's folder.

    Raises:
        ConfigError: there is no such run, or it has no LoRA.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder; give the folder of a run, outputs/DATE/TIME, or of a sweep")
    # a run is known by its folder, however far it came
    files = RunFolder(folder)
    if any(path.exists() for path in (files.lora, files.result, files.hydra)):
        return _trained(folder)
    return _best(folder, objective)


def _best(sweep: Path, objective: str | None) -> TrainedRun:
    try:
        runs = load(sweep)
    except (OSError, ValueError) as error:
        raise ConfigError(f"a file of the sweep cannot be read ({error})") from None
    if not runs:
        raise ConfigError(
            "holds neither a run nor a sweep; give a folder such as outputs/DATE/TIME or multirun/DATE/TIME"
        )
    name = objective or objective_of(runs)
    if complaint := judged.problem(name, columns_of(runs)):
        raise ConfigError(f"its {complaint}")
    finished = ranked(runs, name)
    if not finished:
        raise ConfigError(f"none of its {len(runs)} runs is finished")
    name = ranking(finished, name)
    value = finished[0].value(name)
    score = "" if math.isnan(value) else f" of {value:.3f}"
    what = column_of(name).title if name == RECOMMEND else name
    return replace(_trained(finished[0].folder), chosen=f"the best {what}{score} among {len(finished)} runs")


def _trained(folder: Path) -> TrainedRun:
    files = RunFolder(folder)
    if not foreign.regular(folder, files.relative(files.lora)):
        raise ConfigError(
            f"holds no {files.relative(files.lora)}: its training did not end; repeat the run, which goes on where it "
            "stopped"
        )
    run = _read_any(folder)
    return TrainedRun(folder, run.name, _config(files), files.lora, None, run.overrides, run.report)


def _config(folder: RunFolder) -> Config:
    """What a run was made with: from its record, or from Hydra's for a run that has none yet. All of it is literal."""
    if not (folder.metrics.is_file() or folder.composed.is_file()):
        raise ConfigError(f"holds neither {folder.relative(folder.metrics)} nor {folder.relative(folder.composed)}")
    try:
        if folder.metrics.is_file():
            values = foreign.read_json(folder.path, folder.metrics)["config"]
        else:
            values = foreign.read_composed(folder.path, folder.composed)
        config = structured(values, literal=True)
    except (OSError, ValueError, *_MALFORMED) as error:
        raise ConfigError(f"its config cannot be read, or is another version's ({first_line(error)})") from None
    _check_usable(config)
    return config


def _check_usable(config: Config) -> None:
    """Hold what sampling and export use to the rules of a run to come; the rest was trained with and is history.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems()
    for name in ("model", "lora", "sample"):
        problems.messages += fields.problems(getattr(config, name), f"{name}.")
    problems.require(config.model.family in FAMILIES, f"model.family={config.model.family}: is no family of models")
    resolution = config.sample.resolution
    problems.require(
        resolution % SIZE_MULTIPLE == 0, f"sample.resolution={resolution}: is no multiple of {SIZE_MULTIPLE}"
    )
    if complaint := template.problem(config.dataset.prompt):
        problems.require(False, f"dataset.prompt={config.dataset.prompt}: {complaint}")
    problems.raise_if_any()
