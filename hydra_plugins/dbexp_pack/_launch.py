"""What the pack launcher does, imported when a sweep starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dbexp.core.errors import ConfigError
from hydra_plugins.dbexp_pack import _console, _executors, _gpus, _halving, _jobs, _work
from hydra_plugins.dbexp_pack._settings import PackLauncherConf
from hydra_plugins.dbexp_pack._work import PackWork

if TYPE_CHECKING:
    from dbexp.core.device import Gpu
    from dbexp.estimate.counted import Counted
    from dbexp.pipeline.halving import Judgement, Stop
    from dbexp.pipeline.plan import Plan, PlannedRun


@dataclass(frozen=True)
class Program:
    """What Hydra hands a launcher.

    Attributes:
        config: of the sweep, with its `hydra` node; a job's is composed from it.
        task_function, hydra_context: what a job is called with.
    """

    config: DictConfig
    task_function: TaskFunction
    hydra_context: HydraContext


def launch(
    settings: PackLauncherConf, program: Program, job_overrides: Sequence[Sequence[str]], first: int
) -> list[JobReturn]:
    """Compose and check every job, train them in packs, run each.

    Args:
        settings: of the launcher.
        program: whose jobs they are.
        job_overrides: of each job.
        first: number of the first job: a sweeper may launch batch after batch.

    Returns:
        One per job, in order; FAILED with an exception for a job that failed, which stops no other.

    Raises:
        ConfigError: with the problems of all jobs, before anything is computed.
        SystemExit: the plan was all that was asked for, or a signal stopped a job.
        Interrupted: a signal came while a pack trained.
    """
    if not job_overrides:
        raise ConfigError("the sweep has no runs")
    setup_globals()
    hydra = program.config.hydra
    configure_log(hydra.hydra_logging, hydra.verbose)
    loader = program.hydra_context.config_loader
    composed = [
        _jobs.compose(loader, program.config, words, first + place) for place, words in enumerate(job_overrides)
    ]
    if not all(map(_jobs.is_dbexp, composed)):
        # another program's jobs: there is nothing to pack, but they run all the same
        return [_work.run_hydra_job(program.hydra_context, program.task_function, cfg) for cfg in composed]
    planned = show(settings, _jobs.passed(composed) or _jobs.check(program.config, composed))
    if settings.plan_only:
        sys.exit(0)
    jobs = {job.number: job for job in planned.runs}
    returns: dict[int, JobReturn] = {}
    by_number = {int(cfg.hydra.job.num): cfg for cfg in composed}
    stops: Mapping[int, Stop] = {}
    if settings.halving.rungs:
        gpus = _gpus.look(settings) if settings.executor == "gpus" else None
        reach = partial(_reach, settings, program, by_number, gpus)
        stops = _halving.race(settings, planned, Path(str(composed[0].hydra.sweep.dir)), reach).stops
        left = _gathered(settings, [run for run in planned.runs if run.number not in stops], gpus)
        planned = replace(planned, packs=left.packs)  # those that stopped have nothing to train
    works = _works(settings, program, planned, by_number, stops)
    # closing: whatever ends this, workers are told to stop now and not when the garbage is collected
    with _console.watching(planned, hydra), closing(_executors.EXECUTORS[settings.executor](settings, works)) as stream:
        for number, returned in stream:
            returns[number] = returned
            _console.print_end(jobs[number], returned)
    _console.summary(planned, returns, composed[0])
    return [returns[job.number] for job in planned.runs]


def show(settings: PackLauncherConf, jobs: Sequence[PlannedRun]) -> Plan:
    """Decide what trains with what, and show it."""
    from dbexp.pipeline import forecast, plan

    elsewhere = settings.executor in _executors.ELSEWHERE
    gpus, workers = _gpus.look(settings) if settings.executor == "gpus" else None, _executors.workers(settings)
    counted = None if elsewhere else _counted(jobs, gpus)
    fits = counted.lanes if counted else lambda config: None
    planned = plan.plan(jobs, settings.size, workers=workers, elsewhere=elsewhere, gpus=gpus, fits=fits)
    seen = {job.number: plan.looked_at(job.config, elsewhere, gpus) for job in jobs}
    card = gpus[0].name if gpus else None
    told = forecast.forecast(planned, seen, card, min(workers, len(planned.packs) or 1), counted)
    plan.show(planned, costs=str(told))
    _halving.advise(settings, planned)
    return planned


def _counted(jobs: Sequence[PlannedRun], gpus: Sequence[Gpu] | None) -> Counted | None:
    """What is estimated for the card that jobs will run on, of several the smallest; None where they run on none.

    Args:
        gpus: of other processes; None: they run in this one.
    """
    from dbexp.core import device
    from dbexp.estimate.counted import Counted

    if all(job.config.model.device == "cpu" for job in jobs):
        return None
    cards = device.gpus() if gpus is None else gpus
    return Counted(min(cards, key=lambda card: card.memory)) if cards else None


def _gathered(settings: PackLauncherConf, runs: Sequence[PlannedRun], gpus: Sequence[Gpu] | None) -> Plan:
    """A plan of some runs of the sweep, in the course of a race: those that are left are gathered anew."""
    from dbexp.pipeline import plan

    elsewhere, workers = settings.executor in _executors.ELSEWHERE, _executors.workers(settings)
    return plan.plan(runs, settings.size, workers=workers, elsewhere=elsewhere, gpus=gpus)


def _reach(
    settings: PackLauncherConf,
    program: Program,
    composed: Mapping[int, DictConfig],
    gpus: Sequence[Gpu] | None,
    runs: Sequence[PlannedRun],
) -> dict[int, tuple[Judgement, Path | None]]:
    """Have runs come to their rung and be judged there, wherever packs run."""
    from dbexp.pipeline import halving

    judging = _halving.judging(settings.halving)
    if settings.executor == "inline":
        return halving.reach(runs, judging, settings.size)
    works = [
        replace(work, judging=judging)
        for work in _works(settings, program, _gathered(settings, runs, gpus), composed, {})
    ]
    with closing(_executors.EXECUTORS[settings.executor](settings, works)) as stream:
        return {n: returned.return_value for n, returned in stream if returned.status is JobStatus.COMPLETED}


def _works(
    settings: PackLauncherConf,
    program: Program,
    planned: Plan,
    composed: Mapping[int, DictConfig],
    stops: Mapping[int, Stop],
) -> list[PackWork]:
    """What is trained first, for it is soon done; then pack by pack. Jobs that a race stopped only say so."""
    stopped = tuple(job for job in planned.trained if job.number in stops)
    ready = [job for job in planned.trained if job.number not in stops]
    at_once = -(-len(ready) // _executors.workers(settings)) or 1
    groups: list[tuple[str, Sequence[PlannedRun], bool]] = [("stopped jobs", stopped, False)] if stopped else []
    groups += [("jobs in the store", ready[start : start + at_once], False) for start in range(0, len(ready), at_once)]
    groups += [(f"pack {number}", members, True) for number, members in enumerate(planned.packs, start=1)]
    return [
        PackWork(
            name,
            tuple(members),
            tuple(composed[job.number] for job in members),
            train,
            settings.size,
            _halving.Leave(stops) if members is stopped else program.task_function,
            program.hydra_context,
            str(Path.cwd()),
        )
        for name, members, train in groups
    ]
