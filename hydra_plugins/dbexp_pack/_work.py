"""A pack, wherever it runs: train its jobs together, then run each as an ordinary Hydra job.

The process that trained a pack also samples and evaluates it: models are in its memory already, and the expensive
stages run where the devices are. What it computed is in the store and in the folders of the jobs; what it sends back is
small.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, configure_log, run_job, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from dbexp.pipeline import view

if TYPE_CHECKING:
    from dbexp.pipeline.halving import Judging
    from dbexp.pipeline.plan import PlannedRun
    from dbexp.runs.record import Run

Returned = tuple[int, JobReturn]
"""A job's number, and what became of it."""


class WorkerLost(HydraException):
    """A process ended before the jobs of its pack did, twice: killed, out of memory, or out of time."""


@dataclass(frozen=True)
class PackWork:
    """A pack and everything a process needs to run it; plain data that travels between processes and machines.

    Attributes:
        name: for messages.
        jobs: of the pack.
        composed: config of each job, with its `hydra` node.
        train: whether anything may be left to train.
        size: most lanes that train together; None: as memory allows.
        task_function, hydra_context: what Hydra calls a job with.
        folder: working directory; relative paths in configs start there.
        judging: of jobs that end at a rung of halving, which return what they were judged to be worth; None: they run.
    """

    name: str
    jobs: tuple[PlannedRun, ...]
    composed: tuple[DictConfig, ...]
    train: bool
    size: int | None
    task_function: TaskFunction
    hydra_context: HydraContext
    folder: str
    judging: Judging | None = None

    def only(self, numbers: Sequence[int]) -> PackWork:
        """The same for some of the jobs."""
        pairs = [(job, cfg) for job, cfg in zip(self.jobs, self.composed, strict=True) if job.number in numbers]
        return replace(self, jobs=tuple(job for job, _ in pairs), composed=tuple(cfg for _, cfg in pairs))


def run(work: PackWork) -> Iterator[Returned]:
    """Train a pack, then run its jobs, each told as soon as it ends.

    Raises:
        Interrupted: a signal came while the pack trained; everything is saved.
        SystemExit: a signal stopped a job.
    """
    if work.judging is not None:
        from dbexp.pipeline import halving

        for number, judged in halving.reach(work.jobs, work.judging, work.size).items():
            yield number, JobReturn(status=JobStatus.COMPLETED, _return_value=judged)
        return
    if work.train:
        from dbexp.pipeline import sweep  # seconds, which a job that needs none of it should not wait

        sweep.train_pack(work.jobs, work.size)
    for job, cfg in zip(work.jobs, work.composed, strict=True):
        view.current().begins(job.number)
        yield job.number, run_hydra_job(work.hydra_context, work.task_function, cfg)


def run_hydra_job(hydra_context: HydraContext, task_function: TaskFunction, cfg: DictConfig) -> JobReturn:
    """One ordinary Hydra job: its folder, its log, its callbacks."""
    returned = run_job(
        hydra_context=hydra_context,
        task_function=task_function,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose)
    return returned


def folders(cfg: DictConfig, base: Path) -> tuple[Path, Path]:
    """Folders of the sweep and of the job, which Hydra only tells while the job runs: they may refer to ${hydra:...}.

    Args:
        cfg: of the job, with its `hydra` node.
        base: what they are relative to.
    """
    state: Any = HydraConfig.instance()
    before = state.cfg
    # `set_config` copies all of the config, and takes no None, which is what it was outside a job; Hydra's run_job puts
    # it back in the same way. Checked with hydra-core 1.3.8.
    state.cfg = cfg
    try:
        sweep = base / str(cfg.hydra.sweep.dir)
        return sweep, sweep / str(cfg.hydra.sweep.subdir)
    finally:
        state.cfg = before


def error_of(returned: JobReturn) -> BaseException | None:
    """The exception of a job that failed."""
    # `return_value` would raise it, and print a line of its own first; checked with hydra-core 1.3.8
    value = returned._return_value
    return value if isinstance(value, BaseException) else None


# -- in another process ------------------------------------------------------------------------------------------------


def run_elsewhere(work: PackWork) -> list[Returned]:
    """`run` in a process that knows nothing of Hydra yet; for executors that bring back one result."""
    enter(work)
    return [(number, portable(returned)) for number, returned in run(work)]


def enter(work: PackWork) -> None:
    """Bring a fresh process to where the sweep's own process is: resolvers, name of the program, folder, log."""
    from hydra import version

    from dbexp.config import help

    help.register()
    setup_globals()
    version.setbase("1.3")
    hydra = work.composed[0].hydra
    Singleton.instance(JobRuntime).set("name", hydra.job.name)
    os.chdir(work.folder)
    configure_log(hydra.hydra_logging, hydra.verbose)


def portable(returned: JobReturn) -> JobReturn:
    """The same with an exception that arrives whole: some cannot be unpickled, which would lose the whole pack."""
    error = error_of(returned)
    if error is not None:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            returned.return_value = RuntimeError(f"{type(error).__name__}: {error}")
    return returned


# -- jobs whose process was lost ---------------------------------------------------------------------------------------


def recover(work: PackWork, reason: str) -> Iterator[Returned]:
    """What became of jobs that nobody told of: finished ones say so in their folder, the others failed.

    Args:
        work: of which nothing will come.
        reason: why.
    """
    for job, cfg in zip(work.jobs, work.composed, strict=True):
        if work.judging is None:
            yield job.number, _recovered(job, cfg, Path(work.folder), reason)
        else:  # not judged at this rung; its own job will tell of it if it fails again
            yield job.number, JobReturn(status=JobStatus.FAILED, _return_value=WorkerLost(reason))


def _recovered(job: PlannedRun, cfg: DictConfig, base: Path, reason: str) -> JobReturn:
    from dbexp.runs.outcome import Outcome

    sweep, folder = folders(cfg, base)
    with_hydra: Any = OmegaConf.create({"hydra": OmegaConf.to_container(cfg.hydra, resolve=False)})
    with_hydra.hydra.sweep.dir, with_hydra.hydra.runtime.output_dir = str(sweep), str(folder)
    returned = JobReturn(overrides=list(job.overrides), hydra_cfg=with_hydra, task_name=str(cfg.hydra.job.name))
    finished = _finished(folder, job)
    if finished is not None:
        values = tuple(finished.value(name) for name in job.config.objective)
        returned.status, returned.return_value = JobStatus.COMPLETED, values[0] if len(values) == 1 else values
        return returned
    error = WorkerLost(reason)
    Outcome.of(job.config, folder, job.overrides).failed(error)
    returned.status, returned.return_value = JobStatus.FAILED, error
    return returned


def _finished(folder: Path, job: PlannedRun) -> Run | None:
    """The run of a job, if it is that job's and came to its end."""
    from dbexp.runs import record

    try:
        run = record.read(folder)
    except (OSError, ValueError, KeyError):
        return None
    return run if run.report is not None and run.overrides == job.overrides else None
