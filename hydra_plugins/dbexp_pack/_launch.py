"""What the pack launcher does, imported when a sweep starts."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, configure_log, setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict

from dbexp.core.errors import ConfigError
from hydra_plugins.dbexp_pack import _console, _executors
from hydra_plugins.dbexp_pack._work import Work, places, run_one

if TYPE_CHECKING:
    from dbexp.config.schema import Config
    from dbexp.pipeline.sweep import Plan, PlannedRun
    from hydra_plugins.dbexp_pack.launcher import PackLauncher

log = logging.getLogger(__name__)


def launch(launcher: PackLauncher, job_overrides: Sequence[Sequence[str]], first: int) -> list[JobReturn]:
    """Compose and check every job, train them in packs, run each.

    Args:
        launcher: set up.
        job_overrides: of each job.
        first: number of the first job: a sweeper may launch batch after batch.

    Returns:
        One per job, in order; FAILED with an exception for a job that failed, which stops no other.

    Raises:
        ConfigError: with the problems of all jobs, before anything is computed.
        SystemExit: the plan was all that was wanted, or a signal stopped a job.
        Interrupted: a signal came while a pack trained.
    """
    assert launcher.config is not None
    setup_globals()
    hydra = launcher.config.hydra
    configure_log(hydra.hydra_logging, hydra.verbose)
    composed = [_compose(launcher, overrides, first + place) for place, overrides in enumerate(job_overrides)]
    if not all(_is_ours(cfg) for cfg in composed):
        # another program's jobs: there is nothing to pack, but they run all the same
        assert launcher.hydra_context is not None and launcher.task_function is not None
        return [run_one(launcher.hydra_context, launcher.task_function, cfg) for cfg in composed]
    planned = _plan(launcher, composed)
    if launcher.plan_only:
        sys.exit(0)
    jobs = {job.number: job for job in planned.jobs}
    returns: dict[int, JobReturn] = {}
    works = _works(launcher, planned, {int(cfg.hydra.job.num): cfg for cfg in composed})
    # closing: whatever ends this, workers are told to stop now and not when the garbage is collected
    with _console.watching(planned, hydra), closing(_executors.EXECUTORS[launcher.executor](launcher, works)) as ended:
        for number, returned in ended:
            returns[number] = returned
            _console.tell(jobs[number], returned)
    _console.summary(planned, returns, composed[0])
    return [returns[job.number] for job in planned.jobs]


def _compose(launcher: PackLauncher, overrides: Sequence[str], number: int) -> DictConfig:
    assert launcher.config is not None and launcher.hydra_context is not None
    cfg = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(cfg):
        cfg.hydra.job.id = str(number)
        cfg.hydra.job.num = number
    return cfg


def _is_ours(cfg: DictConfig) -> bool:
    """Whether a composed config is one of dbexp's, and not of another program that uses this launcher."""
    return {"model", "dataset", "lora", "train"} <= set(cfg)


def _plan(launcher: PackLauncher, composed: Sequence[DictConfig]) -> Plan:
    """Check all jobs, decide what trains with what, and show it."""
    from dbexp import tracking
    from dbexp.pipeline import sweep
    from dbexp.runs.names import what_differs

    numbers = [int(cfg.hydra.job.num) for cfg in composed]
    overrides = [tuple(str(word) for word in cfg.hydra.overrides.task) for cfg in composed]
    differs = what_differs(overrides)
    problems = _executors.problems(launcher)
    if launcher.size is not None and launcher.size < 1:
        problems.append(f"hydra.launcher.size={launcher.size}: must be at least 1, or null for what memory allows")
    if any(cfg.hydra.job.chdir for cfg in composed):
        problems.append("hydra.job.chdir=true: a sweep in packs keeps one working directory; set it to false")
    problems += _directions(composed[0])
    jobs: list[PlannedRun] = []
    for number, own, words, cfg in zip(numbers, overrides, differs, composed, strict=True):
        try:
            whole, folder = places(cfg, Path.cwd())
            jobs.append(sweep.PlannedRun(number, own, words, _checked(cfg), folder, tracking.sweep_name(whole)))
        except ConfigError as error:
            problems += [f"{sweep.title(number, words)}: {problem}" for problem in error.problems]
    elsewhere = launcher.executor in _executors.ELSEWHERE
    sweep.check(jobs, problems, elsewhere=elsewhere)
    planned = sweep.plan(jobs, launcher.size, workers=_executors.workers(launcher), elsewhere=elsewhere)
    sweep.show(planned)
    return planned


def _directions(cfg: DictConfig) -> list[str]:
    """What is wrong with the directions of a sweeper that optimises: they must be those in which columns get better."""
    from dbexp.evaluate.columns import COLUMNS

    given = OmegaConf.select(cfg, "hydra.sweeper.direction")
    names = [name.strip() for name in str(cfg.objective).replace("+", ",").split(",")]
    if given is None or not set(names) <= set(COLUMNS):
        return []
    directions = [str(getattr(one, "name", one)) for one in (given if OmegaConf.is_list(given) else [given])]
    right = ["minimize" if COLUMNS[name].better == "lower" else "maximize" for name in names]
    if directions == right:
        return []
    wanted = right[0] if len(right) == 1 else f"[{','.join(right)}]"
    return [
        f"hydra.sweeper.direction={','.join(directions)}: does not suit objective={cfg.objective}; "
        f"say hydra.sweeper.direction={wanted}, or objective=dino+clip_t for two"
    ]


def _checked(cfg: DictConfig) -> Config:
    """The config of a job as its task function will see it."""
    from dbexp.config import check

    return check.check(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]))


def _works(launcher: PackLauncher, planned: Plan, composed: Mapping[int, DictConfig]) -> list[Work]:
    """What is trained first, for it is soon done; then pack by pack."""
    assert launcher.hydra_context is not None and launcher.task_function is not None
    ready = planned.trained
    at_once = -(-len(ready) // _executors.workers(launcher)) or 1
    groups = [("jobs in the store", ready[start : start + at_once], False) for start in range(0, len(ready), at_once)]
    groups += [(f"pack {number}", members, True) for number, members in enumerate(planned.packs, start=1)]
    return [
        Work(
            name,
            tuple(members),
            tuple(composed[job.number] for job in members),
            train,
            launcher.size,
            launcher.task_function,
            launcher.hydra_context,
            str(Path.cwd()),
        )
        for name, members, train in groups
    ]
