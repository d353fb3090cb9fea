"""The callback that keeps a sweep's results.csv up to date, whatever launcher runs its jobs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from dbexp.config.groups import folders, options
from dbexp.config.overrides import without_runs
from dbexp.core import folders as run_folders
from dbexp.core import limits
from dbexp.core.errors import ConfigError
from dbexp.pipeline import command
from hydra_plugins.dbexp_pack import _jobs


class Results(Callback):
    """After each job of a sweep, in the process that ran it, results.csv is written anew from the sweep's folder.

    `hydra/launcher=pack` prints the jobs and the table itself; for every other launcher this does.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a run that cannot be; give it a folder of its own."""
        command.refuse(config)
        _claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep that would have no runs, or a run that cannot be; give it a folder of its own.

        Here and not in a launcher: by then Hydra has written into the folder of the sweep, which may be another's.
        """
        with command.refusing():
            if problems := _without_runs(config):
                raise ConfigError(problems)
        _claim(config, "sweep")
        if not _jobs.is_dbexp(config):
            return
        loader = GlobalHydra.instance().config_loader()
        with command.refusing():
            limits.rehearse(lambda: _jobs.check_sweep(config, loader))
            runs = _jobs.check_sweep(config, loader)
        settings = _jobs.pack_settings(config)
        if runs and settings is not None and settings.plan_only:
            from hydra_plugins.dbexp_pack import _launch

            _launch.show(settings, runs)
            raise SystemExit(0)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the results so far; print the job's line if nobody else will."""
        if not _is_sweep(config):
            return
        with command.refusing():
            _note(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table if nobody else does. Hydra 1.3 leaves this out when a job failed."""
        if _jobs.packs(config):
            return
        with command.refusing():
            from hydra_plugins.dbexp_pack import _console

            _console.show_results(Path(str(config.hydra.sweep.dir)), _objective(config))


def _note(config: DictConfig) -> None:
    """Write the results so far, and print the job's line if nobody else will."""
    from hydra_plugins.dbexp_pack import _console

    folder = Path(str(config.hydra.sweep.dir))
    _console.write_results(folder, _objective(config))
    _console.write_page_so_far(folder)
    if not _jobs.packs(config):
        words = " ".join(config.hydra.overrides.task)
        scores = _console.scores(Path(str(config.hydra.runtime.output_dir)))
        print(f"job {config.hydra.job.num} ({words})  {scores}", flush=True)


def _claim(config: DictConfig, mode: str) -> None:
    """Let no other live process write to the folder of a run or a sweep.

    The folder that the clock named is a new one, with a number behind its name where another process was there in the
    same second. A folder that the user named may exist, which is how a sweep goes on, but nobody may be at work in it.

    Args:
        config: with its `hydra` node; gets the folder's final name.
        mode: run or sweep.
    """
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun the first one writes
        return
    node, field = config.hydra[mode], f"hydra.{mode}.dir"
    path = Path(str(node.dir))
    try:
        with command.refusing():
            if any(word.lstrip("+").startswith(f"{field}=") for word in _jobs.typed(config, "hydra")):
                run_folders.hold(path, field)
                return
            path = run_folders.fresh(path, field)
            run_folders.hold(path, field)
    except OSError:  # Hydra meets it too, and the command words it
        return
    with open_dict(config):
        node.dir = str(path)
        if mode == "sweep":  # Hydra composes every job anew, from the words of the command line
            config.hydra.overrides.hydra.append(f"{field}='{path}'")


def _without_runs(config: DictConfig) -> list[str]:
    """Why a sweep has no runs, whatever its launcher; empty: it has some."""
    problems = without_runs(_jobs.words(config), options(folders(config)))
    trials = OmegaConf.select(config, "hydra.sweeper.n_trials")
    if trials is not None and trials < 1:
        problems.append(f"hydra.sweeper.n_trials={trials}: must be at least 1")
    return problems


def _is_sweep(config: DictConfig) -> bool:
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def _objective(config: DictConfig) -> str:
    """The column that ranks."""
    from dbexp.config.values import objectives

    return next(iter(objectives(config.objective)), "")  # none: the job has failed for it
