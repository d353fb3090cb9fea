"""`executor=submitit`: a job of the cluster per pack, in one array."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import submitit

from dbexp.core.errors import Interrupted
from hydra_plugins.dbexp_pack import _work
from hydra_plugins.dbexp_pack._settings import SubmititConf, without_nulls
from hydra_plugins.dbexp_pack._work import PackWork, Returned

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_QUEUE_SECONDS = 10.0
"""Time between two looks at the queue, and what a shared disk has to show the result of a job that left it."""
_SLURM_NAMES = ("partition", "account", "qos", "constraint", "array_parallelism", "setup", "additional_parameters")


class Requeued:
    """What the cluster runs: a pack, which goes on at its last checkpoint when it is queued again."""

    def __init__(self, work: PackWork) -> None:
        self.work = work

    def __call__(self) -> list[Returned]:
        """Run it."""
        return _work.run_elsewhere(self.work)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues when time is up or somebody more important came: the same again."""
        return submitit.helpers.DelayedSubmission(self)


def run(conf: SubmititConf, works: Sequence[PackWork]) -> Generator[Returned, None, None]:
    """Submit all packs, and tell of their jobs as packs come back.

    Raises:
        Interrupted: Ctrl-C; the cluster's jobs were cancelled, and save before they end.
    """
    executor = _executor(conf)
    pending = {job: (work, 1) for job, work in _submit(executor, works)}
    unlisted: dict[submitit.Job[Any], float] = {}
    queued, checked_at = set[str](), float("-inf")
    try:
        while pending:
            if conf.cluster == "slurm" and time.monotonic() - checked_at > _QUEUE_SECONDS:
                queued, checked_at = _queue(pending), time.monotonic()
            for job, (work, attempt) in list(pending.items()):
                if not _over(job, conf.cluster, queued, unlisted):
                    continue
                del pending[job]
                returns = _returns(job)
                if isinstance(returns, list):
                    yield from returns
                elif attempt == 1:
                    log.warning("%s: %s; it is tried once more", work.name, returns)
                    pending |= {again: (work, 2) for again, _ in _submit(executor, [work])}
                else:
                    log.warning("%s: %s, for the second time; going on without it", work.name, returns)
                    yield from _work.recover(work, f"{work.name}: {returns}, twice")
            time.sleep(_POLL_SECONDS if pending else 0)
    except BaseException as error:  # also when whoever takes the returns was interrupted
        for job in pending:
            job.cancel(check=False)
        if not isinstance(error, KeyboardInterrupt):
            raise
        message = f"{len(pending)} jobs of the cluster were cancelled; the same command goes on where they stopped"
        raise Interrupted(signal.SIGINT, message) from None


def _executor(conf: SubmititConf) -> submitit.AutoExecutor:
    retries = {"slurm_max_num_timeout": conf.max_num_timeout} if conf.cluster == "slurm" else {}
    executor = submitit.AutoExecutor(folder=conf.folder, cluster=conf.cluster, **retries)
    # vars: also options that the user added by +hydra.launcher.submitit.NAME
    parameters = without_nulls(vars(conf))
    for name in ("folder", "cluster", "max_num_timeout"):
        del parameters[name]
    special = {f"slurm_{name}": parameters.pop(name) for name in _SLURM_NAMES if name in parameters}
    executor.update_parameters(**parameters, **special)
    return executor


def _submit(executor: submitit.AutoExecutor, works: Sequence[PackWork]) -> Iterator[tuple[submitit.Job[Any], PackWork]]:
    with executor.batch():
        jobs = [executor.submit(Requeued(work)) for work in works]
    for job, work in zip(jobs, works, strict=True):
        log.info("%s: job %s, log %s", work.name, job.job_id, job.paths.stderr)
        yield job, work


def _queue(pending: dict[submitit.Job[Any], Any]) -> set[str]:
    """Ids of the user's jobs in Slurm's queue; if it cannot be asked, all that are waited for.

    submitit asks the accounting database, which not every cluster has: without one it waits for a killed job for ever.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={os.getuid()}"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_QUEUE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        log.debug("squeue: %s", error)
        return {job.job_id for job in pending}
    # before it starts, the only job of an array is listed under the id of the array
    return {name for line in listing.stdout.split() for name in (line, f"{line}_0")}


def _over(job: submitit.Job[Any], cluster: str, queued: set[str], unlisted: dict[submitit.Job[Any], float]) -> bool:
    """Whether nothing more will come of a job."""
    if cluster != "slurm":
        return bool(job.done())
    if job.paths.result_pickle.exists():
        return True
    if job.job_id in queued:
        unlisted.pop(job, None)
        return False
    return time.monotonic() - unlisted.setdefault(job, time.monotonic()) > 2 * _QUEUE_SECONDS


def _returns(job: submitit.Job[Any]) -> list[Returned] | str:
    """What a job gave, or how it was lost."""
    if job.paths.result_pickle.exists() or not isinstance(job, submitit.SlurmJob):
        try:
            return list(job.result())
        except submitit.core.utils.FailedJobError as error:
            log.debug("%s", error)
            return f"job {job.job_id} failed; see {job.paths.stderr}"
        except submitit.core.utils.UncompletedJobError as error:
            log.debug("%s", error)
    return f"job {job.job_id} ended without a result; see {job.paths.stderr}"
