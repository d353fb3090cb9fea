"""Sweeps of tiny random-weight runs, in this process or another, and what they leave behind."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import dbexp
from dbexp.pipeline import command
from dbexp.pipeline.plan import PlannedRun
from tests import builders


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    status: int
    out: str
    err: str


def exit_status(main: Callable[[], object]) -> int:
    """Run a command; what its process would end with, after the message that the interpreter would print."""
    try:
        main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return 1 if isinstance(stop.code, str) else int(stop.code or 0)
    return 0


def dbexp_command(folder: Path, *argv: str) -> Outcome:
    """Run the command line in a folder, in this process."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out, err = io.StringIO(), io.StringIO()
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dbexp", *argv])
        patch.delenv("HYDRA_FULL_ERROR", raising=False)
        try:
            status = exit_status(command.main)
        except Exception:  # what nobody worded: the interpreter shows where it came from
            traceback.print_exc(file=sys.stderr)
            status = 1
        finally:
            for handler in {*root.handlers} - {*handlers}:
                handler.close()
            root.handlers[:], root.level = handlers, level
            GlobalHydra.instance().clear()
    return Outcome(status, out.getvalue(), err.getvalue())


def tiny(store: Path) -> list[str]:
    """Overrides of a run with every stage, which notes every step."""
    train = ["train.lr=1e-3", "train.log_every=1", "train.checkpoint_every=0"]
    return [*builders.overrides(store), *train, "prior.count=3", "prior.steps=2", "sample.class_images=4"]


def planned_run(number: int, *differs: str, device: str = "cpu") -> PlannedRun:
    """A run of a sweep that shares its training with no other."""
    config = builders.config(seed=number)
    return PlannedRun(number, differs, differs, replace(config, model=replace(config.model, device=device)))


def results(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def everything(folder: Path) -> Mapping[str, tuple[bytes, int]]:
    """Content and time of every file and folder below a folder."""
    return {
        path.relative_to(folder).as_posix(): (
            path.read_bytes() if path.is_file() else b"",
            path.stat().st_mtime_ns,
        )
        for path in folder.rglob("*")
    }


def earlier_sweep(folder: Path) -> Mapping[str, tuple[bytes, int]]:
    """Put what a good sweep has left into a folder."""
    for name in ("multirun.yaml", "results.csv", "0/.hydra/config.yaml", "0/dbexp.log", ".hydra/config.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name} of a good sweep")
        os.utime(folder / name, (1e9, 1e9))
    return everything(folder)


def start(folder: Path, *argv: str, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Begin the command line in a process of its own; its output is in `folder`/said.log."""
    source = str(Path(dbexp.__file__).parents[1])
    with (folder / "said.log").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "dbexp", *argv],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": source} | dict(variables or {}),
            stdout=output,
            stderr=output,
            text=True,
        )


def until(
    ready: Callable[[], object], process: subprocess.Popen[str], folder: Path, *, glance_seconds: float = 0.2
) -> None:
    """Wait for something that a process from `start` does, which must still run then."""
    deadline = time.monotonic() + 900
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "said.log").read_text()
        time.sleep(glance_seconds)


def strike(
    process: subprocess.Popen[str],
    signum: signal.Signals,
    folder: Path,
    when: str | Callable[[], object],
    *,
    glance_seconds: float = 0.01,
) -> int:
    """End a process from `start` by a signal.

    Args:
        process: to end.
        signum: the signal.
        folder: that it was started in.
        when: what has happened by then, or what it has printed.
        glance_seconds: between looks.

    Returns:
        The status of its end.
    """
    ready = (lambda: when in (folder / "said.log").read_text()) if isinstance(when, str) else when
    until(ready, process, folder, glance_seconds=glance_seconds)
    process.send_signal(signum)
    return process.wait(300)


def fork(work: Callable[[], int]) -> int:
    """Begin a piece of work in a process forked from this one, which has imported everything already.

    Args:
        work: its result is the exit status; an exception is printed, and makes it 1.

    Returns:
        Id of the process, for `os.waitpid`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads, which sleep here
        child = os.fork()
    if child == 0:
        status = 1
        try:
            status = work()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child
