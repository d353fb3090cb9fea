"""What the pack launcher does, imported when a sweep starts."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from dbexp.errors import ConfigError

if TYPE_CHECKING:
    from dbexp.config import Config
    from dbexp.sweep import Job, Plan
    from hydra_plugins.dbexp_pack.launcher import PackLauncher

log = logging.getLogger(__name__)


class JobsFailed(HydraException):
    """Stands for the exceptions of failed jobs once they have been told: a sweeper raises it, `dbexp` exits with 1."""


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
        return [_run(launcher, cfg) for cfg in composed]
    planned = _plan(launcher, composed)
    if launcher.plan_only:
        sys.exit(0)
    returns = _run_planned(launcher, planned, {int(cfg.hydra.job.num): cfg for cfg in composed})
    _report(planned, returns, composed[0])
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
    from dbexp import compare, pack, sweep

    size = pack.DEFAULT_SIZE if launcher.size is None else launcher.size
    numbers = [int(cfg.hydra.job.num) for cfg in composed]
    overrides = [tuple(str(word) for word in cfg.hydra.overrides.task) for cfg in composed]
    differs = compare.what_differs(overrides)
    problems: list[str] = []
    if size < 1:
        problems.append(f"hydra.launcher.size={size}: must be at least 1")
    if any(cfg.hydra.job.chdir for cfg in composed):
        problems.append("hydra.job.chdir=true: a sweep in packs keeps one working directory; set it to false")
    jobs: list[Job] = []
    for number, own, words, cfg in zip(numbers, overrides, differs, composed, strict=True):
        try:
            jobs.append(sweep.Job(number, own, words, _checked(cfg)))
        except ConfigError as error:
            problems += [f"{sweep.title(number, words)}: {problem}" for problem in error.problems]
    sweep.check(jobs, problems)
    planned = sweep.plan(jobs, size)
    sweep.show(planned)
    return planned


def _checked(cfg: DictConfig) -> Config:
    """The config of a job as its task function will see it."""
    from dbexp import config

    return config.check(OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]))


def _run_planned(launcher: PackLauncher, planned: Plan, composed: Mapping[int, DictConfig]) -> dict[int, JobReturn]:
    """Run what is trained, then pack by pack; the results so far are on disk and told after each job."""
    from dbexp import sweep

    returns: dict[int, JobReturn] = {}
    for number, members in enumerate([planned.trained, *planned.packs]):
        if number:
            sweep.train_pack(members)
        for job in members:
            returns[job.number] = _run(launcher, composed[job.number])
            _tell(job, returns[job.number])
    return returns


def _run(launcher: PackLauncher, cfg: DictConfig) -> JobReturn:
    """One ordinary Hydra job: its folder, its log, its callbacks."""
    assert launcher.config is not None and launcher.hydra_context is not None and launcher.task_function is not None
    returned = run_job(
        hydra_context=launcher.hydra_context,
        task_function=launcher.task_function,
        config=cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    configure_log(launcher.config.hydra.hydra_logging, launcher.config.hydra.verbose)
    return returned


def _tell(job: Job, returned: JobReturn) -> None:
    """Bring results.csv up to date and print the job's line; both can be made again, so trouble here costs no job."""
    from dbexp import compare

    folder = _folder(returned)
    try:
        compare.write_results(_sweep_folder(returned), job.config.objective)
        said = compare.line(compare.read(folder))
    except (OSError, ValueError, KeyError) as error:
        log.warning("results of %s: %s: %s", folder.parent, type(error).__name__, error)
        said = f"see {folder}"
    print(f"{job.title}  {said}", flush=True)


def _report(planned: Plan, returns: Mapping[int, JobReturn], cfg: DictConfig) -> None:
    """The table of all runs, then every failure with its folder and the command that repeats it alone."""
    from dbexp import compare, stages

    folder = _sweep_folder(next(iter(returns.values())))
    print(flush=True)
    try:
        compare.show(compare.load(folder), planned.jobs[0].config.objective)
        print(f"\nresults        {folder / compare.RESULTS}", flush=True)
    except (OSError, ValueError, KeyError) as error:
        log.warning("results of %s: %s: %s", folder, type(error).__name__, error)
    failed = [job for job in planned.jobs if returns[job.number].status is not JobStatus.COMPLETED]
    for job in failed:
        returned = returns[job.number]
        folder = _folder(returned)
        log.error("%s failed: %s", job.title, _reason(returned))
        log.error("  folder     %s", folder)
        if (folder / stages.TRACEBACK).exists():
            log.error("  traceback  %s", folder / stages.TRACEBACK)
        log.error("  repeat     %s", shlex.join(["dbexp", *_config_folders(cfg), *job.overrides]))
    for job in failed:
        told = JobsFailed(f"{len(failed)} of {len(planned.jobs)} jobs failed; see above")
        told.__cause__, told.__suppress_context__ = None, True
        returns[job.number].return_value = told


def _sweep_folder(returned: JobReturn) -> Path:
    assert returned.hydra_cfg is not None
    return Path(str(returned.hydra_cfg.hydra.sweep.dir))


def _folder(returned: JobReturn) -> Path:
    assert returned.hydra_cfg is not None
    return Path(str(returned.hydra_cfg.hydra.runtime.output_dir))


def _reason(returned: JobReturn) -> str:
    """First line of a failed job's exception, with its type where the type says something."""
    error = returned._return_value
    first = (str(error).strip() or "no message").splitlines()[0]
    return first if isinstance(error, ConfigError) else f"{type(error).__name__}: {first}"


def _config_folders(cfg: DictConfig) -> list[str]:
    """The switches that gave Hydra more folders of options."""
    sources = cfg.hydra.runtime.config_sources
    return [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
