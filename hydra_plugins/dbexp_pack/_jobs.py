"""The jobs of a sweep before the first one starts: composed and checked, all of them, whatever launcher runs them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dbexp.config import overrides
from dbexp.config.check import examine
from dbexp.config.explain import explain
from dbexp.core.errors import ConfigError, Problems
from dbexp.core.folders import obstacle
from dbexp.pipeline.command import without_hydra
from dbexp.runs.names import sweep_name, what_differs
from hydra_plugins.dbexp_pack import _composing, _executors, _gpus, _halving, _work
from hydra_plugins.dbexp_pack._settings import PackLauncherConf

if TYPE_CHECKING:
    from dbexp.pipeline.plan import Faults, PlannedRun

_PACK, _BASIC_SWEEPER, _BASIC_LAUNCHER = "dbexp_pack", "BasicSweeper", "BasicLauncher"
_ADVICE = "add /${hydra.job.num} to it"

_checked: dict[int, PlannedRun] = {}
"""The jobs of this process's sweep by number, since they passed."""


def packs(config: DictConfig) -> bool:
    """Whether a sweep's launcher is `hydra/launcher=pack`, with whatever executor."""
    return _PACK in str(config.hydra.launcher._target_)


def pack_settings(config: DictConfig) -> PackLauncherConf | None:
    """The settings of `hydra/launcher=pack`; None: another one launches."""
    if not packs(config):
        return None
    settings: PackLauncherConf = instantiate(config.hydra.launcher).settings
    return settings


def words(config: DictConfig) -> list[str]:
    """The overrides of a sweep as Hydra's own sweeper has them: those of its preset, for which the command line may
    have other values, then those of the command line."""
    preset = OmegaConf.select(config, "hydra.sweeper.params") or {}
    by_name = {str(name): f"{name}={value}" for name, value in preset.items()}
    return [*(by_name | {text.partition("=")[0]: text for text in typed(config, "task")}).values()]


def typed(config: DictConfig, kind: str) -> list[str]:
    """The overrides of the command line as they were typed, interpolations and all.

    Args:
        kind: task, or hydra for those of Hydra's own settings.
    """
    texts: Any = OmegaConf.to_container(config.hydra.overrides[kind], resolve=False)
    return [str(text) for text in texts]


def compose(loader: ConfigLoader, config: DictConfig, task: Sequence[str], number: int) -> DictConfig:
    """The config of a job, with its `hydra` node.

    Args:
        loader: of the sweep.
        config: of the sweep.
        task: the job's overrides.
        number: of the job.
    """
    cfg = loader.load_sweep_config(config, list(task))
    with open_dict(cfg):
        cfg.hydra.job.id = str(number)
        cfg.hydra.job.num = number
    return cfg


def is_dbexp(cfg: DictConfig) -> bool:
    """Whether a composed config is one of dbexp's: Hydra's own suite for launchers brings programs of its own."""
    return {"model", "dataset", "lora", "train"} <= set(cfg)


def check_sweep(config: DictConfig, loader: ConfigLoader) -> list[PlannedRun]:
    """Look at every job of a sweep; where its sweeper chooses on the way, at jobs with each value that it may choose.

    Args:
        config: of the sweep, with its `hydra` node and the folder that it will have.
        loader: composes a job's config.

    Returns:
        The jobs; none where the sweeper chooses.

    Raises:
        ConfigError: with the problems of all jobs.
    """
    from dbexp.pipeline import plan

    _checked.clear()
    _composing.remember(loader)
    known = _BASIC_SWEEPER in str(config.hydra.sweeper._target_)
    tasks = (overrides.jobs if known else overrides.samples)(words(config), loader)
    faults, composed = plan.Faults(len(tasks)), list[DictConfig]()
    for number, (task, differs) in enumerate(zip(tasks, what_differs(tasks), strict=True)):
        try:
            composed.append(compose(loader, config, task, number))
        except (HydraException, OmegaConfBaseException) as error:
            faults.note([explain(error)], plan.title(number if known else None, differs))
    subdir = str(cast(dict[str, Any], OmegaConf.to_container(config.hydra.sweep, resolve=False))["subdir"])
    if not known and "job.num" not in subdir and "job.id" not in subdir:
        faults.everywhere.append(f"hydra.sweep.subdir={subdir}: may be one folder for several jobs; {_ADVICE}")
    runs = check(config, composed, faults, known=known)
    _checked.update({run.number: run for run in runs if known})
    return [*_checked.values()]


def passed(composed: Sequence[DictConfig]) -> list[PlannedRun] | None:
    """Jobs that `check_sweep` has looked at in this process; None: not at all of these."""
    runs = [_checked.get(int(cfg.hydra.job.num)) for cfg in composed]
    found = [
        run for run, cfg in zip(runs, composed, strict=True) if run and run.overrides == tuple(cfg.hydra.overrides.task)
    ]
    return found if len(found) == len(composed) else None


def check(
    config: DictConfig, composed: Sequence[DictConfig], faults: Faults | None = None, *, known: bool = True
) -> list[PlannedRun]:
    """Look at jobs that are composed.

    Args:
        config: of their sweep.
        composed: config of each, with its `hydra` node.
        faults: found before, to be told with those of the jobs.
        known: whether these are the jobs; else they stand for those that a sweeper may propose.

    Raises:
        ConfigError: with the problems of all jobs.
    """
    from dbexp.pipeline import plan

    settings = pack_settings(config)
    faults = faults or plan.Faults(len(composed))
    faults.everywhere += [] if settings is None else _problems(settings, composed)
    tasks = [tuple(typed(cfg, "task")) for cfg in composed]
    kind = plan.PlannedRun if known else plan.Proposal
    runs, places = list[plan.PlannedRun](), dict[Path, int]()
    for task, differs, cfg in zip(tasks, what_differs(tasks), composed, strict=True):
        number = int(cfg.hydra.job.num)
        sweep, folder = _work.folders(cfg, Path.cwd())
        problems = Problems()
        with problems.noting():
            if known:
                _check_folder(number, sweep, folder, places)
        with problems.noting():
            job, wrong = examine(without_hydra(cfg))  # as its task function will see it
            problems.messages += wrong
            runs.append(kind(number, task, differs, job, folder, sweep_name(sweep)))
        faults.note(problems.messages, plan.title(number if known else None, differs))
    faults.everywhere += _device_problems(config, settings, sorted({run.config.model.device for run in runs}))
    plan.check(runs, faults, elsewhere=_elsewhere(config, settings))
    return runs


def _problems(settings: PackLauncherConf, composed: Sequence[DictConfig]) -> list[str]:
    """What is wrong with the settings of `hydra/launcher=pack`."""
    problems = _executors.problems(settings) + _halving.problems(settings)
    if settings.size is not None and settings.size < 1:
        problems.append(f"hydra.launcher.size={settings.size}: must be at least 1, or null for what memory allows")
    if any(cfg.hydra.job.chdir for cfg in composed):
        problems.append("hydra.job.chdir=true: a sweep in packs keeps one working directory; set it to false")
    return problems


def _device_problems(config: DictConfig, settings: PackLauncherConf | None, names: Sequence[str]) -> list[str]:
    """What is wrong with the `model.device` of jobs that processes of this machine run: no load of networks tells."""
    if settings is not None:
        return _gpus.device_problems(names) if settings.executor == "gpus" else []
    if "joblib" not in str(config.hydra.launcher._target_).lower():
        return []
    from dbexp.core.device import pick_device

    problems = Problems()
    for name in names:
        with problems.noting():
            pick_device(name)
    return problems.messages


def _elsewhere(config: DictConfig, settings: PackLauncherConf | None) -> bool:
    """Whether jobs run in other processes: networks that this one loaded would stay on a worker's GPU, and which
    devices and compilers there are is another machine's affair."""
    if settings is not None:
        return settings.executor != "inline"
    return _BASIC_LAUNCHER not in str(config.hydra.launcher._target_)


def _check_folder(number: int, sweep: Path, folder: Path, places: dict[Path, int]) -> None:
    """Every job has a folder of its own, where the sweep finds it again.

    Args:
        number: of the job.
        sweep: its sweep's folder.
        folder: its own.
        places: of the jobs so far, with their numbers; gets this one's.

    Raises:
        ConfigError: it is that of another job, or outside of the sweep's folder.
    """
    path, setting = Path(os.path.normpath(folder)), f"hydra.sweep.subdir={os.path.relpath(folder, sweep)}"
    if not path.is_relative_to(os.path.normpath(sweep)):
        raise ConfigError(f"{setting}: leads out of the folder of the sweep, {sweep}")
    if path in places:
        raise ConfigError(f"{setting}: is the folder of job {places[path]} too; {_ADVICE}")
    if fault := obstacle(path):
        raise ConfigError(f"{setting}: {fault}; give another")
    places[path] = number
