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

from dbexp.config.explain import explain
from dbexp.config.groups import folders, options
from dbexp.config.overrides import jobs, without_runs
from dbexp.core import folders as run_folders
from dbexp.core.errors import ConfigError
from dbexp.pipeline import command

_PACK = "dbexp_pack"


class Results(Callback):
    """After each job of a sweep, in the process that ran it, results.csv is written anew from the sweep's folder.

    `hydra/launcher=pack` prints the jobs and the table itself; for every other launcher this does.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a run that cannot be; give it a folder of its own."""
        command.refuse(config)
        _claim(config, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse a sweep that would have no runs, or runs that write over each other."""
        if problems := _without_runs(config) or _shared_folders(config):
            # no exception of another kind gets past Hydra, for which a callback cannot end anything
            raise SystemExit(f"dbexp: {explain(ConfigError(problems))}")
        _claim(config, "sweep")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the results so far; print the job's line if nobody else will."""
        if not _is_sweep(config):
            return
        from hydra_plugins.dbexp_pack import _console

        _console.write_results(Path(str(config.hydra.sweep.dir)), _objective(config))
        _console.write_page_so_far(Path(str(config.hydra.sweep.dir)))
        if not _packs(config):
            words = " ".join(config.hydra.overrides.task)
            scores = _console.scores(Path(str(config.hydra.runtime.output_dir)))
            print(f"job {config.hydra.job.num} ({words})  {scores}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table if nobody else does. Hydra 1.3 leaves this out when a job failed."""
        if not _packs(config):
            from hydra_plugins.dbexp_pack import _console

            _console.show_results(Path(str(config.hydra.sweep.dir)), _objective(config))


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
        if any(word.lstrip("+").startswith(f"{field}=") for word in _typed(config, "hydra")):
            run_folders.hold(path, field)
            return
        path = run_folders.fresh(path, field)
        run_folders.hold(path, field)
    except ConfigError as error:
        raise SystemExit(f"dbexp: {explain(error)}") from None
    except OSError:  # Hydra meets it too, and the command words it
        return
    with open_dict(config):
        node.dir = str(path)
        if mode == "sweep":  # Hydra composes every job anew, from the words of the command line
            config.hydra.overrides.hydra.append(f"{field}='{path}'")


def _typed(config: DictConfig, kind: str) -> list[str]:
    """The overrides of the command line as they were typed, interpolations and all.

    Args:
        kind: task, or hydra for those of Hydra's own settings.
    """
    words: Any = OmegaConf.to_container(config.hydra.overrides[kind], resolve=False)
    return [str(word) for word in words]


def _words(config: DictConfig) -> list[str]:
    """The overrides of a sweep: those of the command line, then those of its preset."""
    typed = _typed(config, "task")
    names = {word.partition("=")[0] for word in typed}
    preset = OmegaConf.select(config, "hydra.sweeper.params") or {}
    return [*typed, *(f"{name}={value}" for name, value in preset.items() if name not in names)]


def _without_runs(config: DictConfig) -> list[str]:
    """Why a sweep has no runs, whatever its launcher; empty: it has some."""
    problems = without_runs(_words(config), options(folders(config)))
    trials = OmegaConf.select(config, "hydra.sweeper.n_trials")
    if trials is not None and trials < 1:
        problems.append(f"hydra.sweeper.n_trials={trials}: must be at least 1")
    return problems


def _shared_folders(config: DictConfig) -> list[str]:
    """Why jobs would write into one folder, for launchers that look at one job at a time; hydra/launcher=pack looks at
    all of them itself."""
    sweep: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    subdir = str(sweep["subdir"])
    if _packs(config) or "job.num" in subdir or "job.id" in subdir:
        return []
    setting, advice = f"hydra.sweep.subdir={subdir}", "add /${hydra.job.num} to it"
    if "BasicSweeper" not in str(config.hydra.sweeper._target_):
        return [f"{setting}: may be one folder for several jobs; {advice}"]
    from hydra_plugins.dbexp_pack import _work

    loader, taken = GlobalHydra.instance().config_loader(), dict[Path, int]()
    for number, words in enumerate(jobs(_words(config))):
        folder = _work.folders(loader.load_sweep_config(config, words), Path.cwd())[1]
        if folder in taken:
            return [f"{setting}: is the folder of job {taken[folder]} and of job {number}; {advice}"]
        taken[folder] = number
    return []


def _is_sweep(config: DictConfig) -> bool:
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def _objective(config: DictConfig) -> str:
    """The column that ranks."""
    from dbexp.config.values import objectives

    return next(iter(objectives(config.objective)), "")  # none: the job has failed for it


def _packs(config: DictConfig) -> bool:
    return _PACK in str(config.hydra.launcher._target_)
