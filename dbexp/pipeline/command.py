"""The command `dbexp`: Hydra composes a run or a sweep, `dbexp.pipeline.run` goes through the stages of each job.

Only what costs nothing is imported up here: help, completion and a mistyped key must not wait for torch.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dbexp.config import check, completion, help
from dbexp.config.explain import explain, parameters, stopped, version
from dbexp.config.groups import conf_dir, options
from dbexp.config.overrides import beyond_hydra, groups_among, switches_first
from dbexp.config.schema import Config
from dbexp.core import disk, folders, interrupts, limits
from dbexp.core.errors import (
    SPARE_MEMORY,
    ConfigError,
    Interrupted,
    TrainingDiverged,
    causes,
    lacks_memory,
    memory_message,
)
from dbexp.evaluate.columns import COLUMNS, RECOMMEND
from dbexp.runs.names import sweep_name

# what Hydra writes into the folder of a run or sweep before anything of dbexp's runs
_HYDRAS = (".hydra", "multirun.yaml", "dbexp.log")
# Hydra prints exceptions and exits by itself unless this is set; with it, they come to `main`, which words them.
_RAISE = "HYDRA_FULL_ERROR"
# OpenMP's threads spin while they wait, unless told before torch loads it. On a machine with anything else to do, the
# small layers of a small model then take many times longer with two threads than with one.
_WAIT = "OMP_WAIT_POLICY"
# what a signal leaves outside of training, and how to go on
_KEPT = "stopped; images that were drawn and all that was finished are kept: the same command goes on from there"


def start(words: Sequence[str]) -> None:
    """Do what a command line says; what goes wrong is raised, and worded by whoever asked.

    Args:
        words: behind the command's name.

    Raises:
        ConfigError, TrainingDiverged, HydraException, OmegaConfBaseException: bad input, or jobs that failed.
        Interrupted, SystemExit: a signal stopped it, or nothing was to be done but to show something.
    """
    help.register()
    os.environ.setdefault(_RAISE, "1")
    os.environ.setdefault(_WAIT, "PASSIVE")
    before, sys.argv = sys.argv, [sys.argv[0], *switches_first(words)]  # Hydra reads its words there and nowhere else
    known = groups_among(options([conf_dir()]), parameters())
    try:
        if problems := beyond_hydra(sys.argv[1:], known):
            raise ConfigError(problems)
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(job)()
    except BaseException:  # what ended before anything came of it leaves no folder behind
        folders.take_back(_HYDRAS)
        raise
    finally:
        sys.argv = before
        folders.release_all()


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 bad input or a failed job, 130 by Ctrl-C, 143 by SIGTERM."""
    if "--version" in sys.argv[1:]:
        print(version())
        return
    if (completed := completion.answer(sys.argv[1:], {"objective": [*COLUMNS, RECOMMEND]})) is not None:
        print(completed)
        return
    with interrupts.sigterm_raised():
        _start_or_explain()


def _start_or_explain() -> None:
    """Do what the command line says, or say why not, and how to go on."""
    try:
        start(sys.argv[1:])
    except (ConfigError, TrainingDiverged, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"dbexp: {explain(error)}")
    except Interrupted as stop:  # while a pack trained, outside any job
        sys.exit(_stopped(stop))
    except KeyboardInterrupt as stop:
        sys.exit(_stopped(Interrupted(interrupts.signum_of(stop), _KEPT)))
    except Exception as error:
        if (message := _message(error)) is None:
            raise
        sys.exit(f"dbexp: {message}")


def _message(error: Exception) -> str | None:
    """What a user can mend of exceptions that are not meant for users; None: a fault, which its traceback tells."""
    if lacks_memory(error):
        return memory_message(error, SPARE_MEMORY)
    if isinstance(error, ValueError) and _raised_in(error) == "hydra":  # for switches that exclude each other, say
        return str(error)
    in_job = any(frame.f_code is job.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))
    # Hydra makes the run's folder before the job begins, and logging the log file, of which it only tells the cause
    of_disk = error if isinstance(error, OSError) else next(filter(disk.refuses, causes(error)), None)
    if isinstance(of_disk, OSError) and not in_job:
        asked = {f"{field}=FOLDER": path for field, path in folders.latest.items()}
        return disk.message(of_disk, asked or {"hydra.run.dir=FOLDER, or hydra.sweep.dir=FOLDER for a sweep": Path()})
    return None


def refuse(cfg: DictConfig) -> None:
    """End a run that cannot be, before Hydra makes a folder for it.

    Args:
        cfg: what Hydra composed, with its `hydra` node.

    Raises:
        SystemExit: with every problem of the config, or of the files and networks that it names.
    """
    if os.environ.get(_RAISE) != "1":  # Hydra's own report is asked for, which the job gives
        return
    configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose)
    logging.getLogger().addHandler(_early)
    with refusing():
        config, problems = check.examine(without_hydra(cfg))
        limits.rehearse(lambda: _ready(config, problems))
        _ready(config, problems)


@contextmanager
def refusing() -> Iterator[None]:
    """What a user can mend ends the block, and the process, with a message.

    No exception of another kind gets past Hydra's callbacks, for which none can end anything.

    Raises:
        SystemExit: with the message.
    """
    try:
        yield
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        raise SystemExit(f"dbexp: {explain(error)}") from None
    except Exception as error:
        if (message := _message(error)) is None:
            raise
        raise SystemExit(f"dbexp: {message}") from None


def _ready(config: Config, problems: Sequence[str]) -> None:
    """Have everything in memory that a run needs before it trains, or say why not.

    Args:
        problems: of the config.
    """
    from dbexp.pipeline import run  # torch and diffusers: seconds

    run.ready(config, problems)


class _Early(logging.Handler):
    """Keeps what is said before there is a log file."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def into_files(self) -> None:
        """Write it into the log files that there are by now; a terminal has it already."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                for record in self.records:
                    handler.handle(record)
        self.records.clear()


_early = _Early()


def without_hydra(cfg: DictConfig) -> DictConfig:
    """A composed config as a job sees it."""
    return OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"])


def job(cfg: DictConfig) -> float | tuple[float, ...] | None:
    """One job: check the config, run the stages, return what `objective` names.

    Args:
        cfg: what Hydra composed, without its `hydra` node.

    Returns:
        The value of the objective, or of each of several, for a sweeper to optimise; None in processes other
        than the first, which have no table.

    Raises:
        ConfigError: in a sweep, with every problem of the config; it fails only the job.
        TrainingDiverged: in a sweep; it fails only the job.
        SystemExit: with the message, where a run that is no sweep fails in one of these ways; or a signal stopped the
            run, which ends a sweep too.
    """
    _early.into_files()
    hydra_config = HydraConfig.get()
    sweeps = hydra_config.mode == RunMode.MULTIRUN
    # hydra.job.chdir=true moves into the folder of the run, but paths are those that the user typed
    start = Path(hydra_config.runtime.cwd) if hydra_config.job.chdir else Path.cwd()
    try:
        with folders.working_in(start):
            checked = check.check(cfg)
            from dbexp.pipeline import run  # torch and diffusers: seconds, so after the check

            sweep = sweep_name(Path(hydra_config.sweep.dir)) if sweeps else None
            folder, words = Path(hydra_config.runtime.output_dir), list(hydra_config.overrides.task)
            values = run.run(checked, folder, words, sweep)
    except Interrupted as stop:
        raise SystemExit(_stopped(stop)) from None
    except (ConfigError, TrainingDiverged) as error:
        if sweeps or os.environ.get(_RAISE) != "1":
            raise
        # past Hydra, which prints a line of its own above an ordinary exception
        raise SystemExit(f"dbexp: {explain(error)}") from None
    scores = tuple(values[name] for name in checked.objective) if values else ()
    return scores[0] if len(scores) == 1 else scores or None


def _stopped(stop: Interrupted) -> int:
    """Say where the run or the sweep stopped; returns the exit status."""
    return stopped("dbexp", Interrupted(stop.signum, f"{stop}{folders.again('hydra.sweep.dir')}"))


def _raised_in(error: BaseException) -> str:
    """Name of the top-level package whose code raised an exception."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
