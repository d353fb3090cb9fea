"""What a sweep says while it runs and when it ends."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus, configure_log
from hydra.errors import HydraException
from omegaconf import DictConfig

from dbexp.core.errors import ConfigError, TrainingDiverged, first_line
from dbexp.pipeline import view
from hydra_plugins.dbexp_pack import _work

if TYPE_CHECKING:
    from dbexp.pipeline.plan import Plan, PlannedRun

log = logging.getLogger(__name__)


_PAGE_SECONDS, _PAGE_SHARE = 30.0, 20
_pages: dict[Path, tuple[float, float]] = {}
"""Folder of a sweep -> when its page was written last, and how long that took; seconds."""


class JobsFailed(HydraException):
    """Stands for the exceptions of failed jobs once they have been told: a sweeper raises it, `dbexp` exits with 1."""


@contextmanager
def watching(planned: Plan, hydra: DictConfig) -> Iterator[None]:
    """Show the sweep on the terminal, if there is one, and log above the view."""
    differs = {job.number: job.differs for job in planned.runs}
    steps = {job.number: job.config.train.steps for job in planned.runs}
    try:
        with view.watching(differs, [[job.number for job in members] for members in planned.packs], steps):
            configure_log(hydra.hydra_logging, hydra.verbose)  # the stream of a handler is chosen when it is made
            yield
    finally:
        configure_log(hydra.hydra_logging, hydra.verbose)


def print_end(job: PlannedRun, returned: JobReturn) -> None:
    """Print the line of a job that has ended."""
    failure = "diverged" if isinstance(_work.error_of(returned), TrainingDiverged) else "failed"
    view.current().ends(job.number, "finished" if returned.status is JobStatus.COMPLETED else failure)
    print(f"{job.title}  {scores(job_folder(returned))}", flush=True)


def scores(folder: Path) -> str:
    """The scores of a job, or why there are none."""
    from dbexp.compare import table
    from dbexp.runs import record

    try:
        return table.line(record.read(folder))
    except (OSError, ValueError, KeyError):
        return f"see {folder}"


def write_results(folder: Path, objective: str) -> None:
    """Bring results.csv of a sweep up to date; it can be made again at any time, so trouble here costs no job."""
    from dbexp.compare.results import write_results

    try:
        write_results(folder, objective)
    except (OSError, ValueError, KeyError) as error:
        log.warning("results of %s: %s: %s", folder, type(error).__name__, error)


def write_page_so_far(folder: Path) -> None:
    """Bring the page of a sweep that still runs up to date, so that it can be looked at from the first jobs on.

    A page takes seconds, so it is written at most every `_PAGE_SECONDS`, and takes a twentieth of the time at most.
    """
    from dbexp.compare.write import write_comparison
    from dbexp.runs.folder import RunFolder

    started = time.time()
    ended, took = _pages.get(folder, (0.0, 0.0))
    try:
        begun = RunFolder(folder).sweep.stat().st_mtime
        if started - max(begun, ended) < max(_PAGE_SECONDS, _PAGE_SHARE * took):
            return
        write_comparison([folder], is_running=True)
    except Exception as error:  # the sweep's end writes it anew
        log.debug("page of %s: %s: %s", folder, type(error).__name__, error)
    _pages[folder] = (time.time(), time.time() - started)


def show_results(folder: Path, objective: str) -> None:
    """Print the table of all runs of a sweep, what it says, and where its results are."""
    from dbexp.compare import table
    from dbexp.compare.results import RESULTS
    from dbexp.compare.summary import summarise
    from dbexp.compare.terminal import show_statements
    from dbexp.compare.write import write_comparison
    from dbexp.runs import record

    print(flush=True)
    write_results(folder, objective)
    try:
        table.show_runs(record.load(folder), objective)
        if (folder / RESULTS).is_file():
            print(f"\nresults        {folder / RESULTS}", flush=True)
    except (OSError, ValueError, KeyError) as error:
        log.warning("results of %s: %s: %s", folder, type(error).__name__, error)
    try:
        written = write_comparison([folder])
        show_statements(written.comparison)
        print(f"\npage           {written.page}", flush=True)
        summarise(written.comparison)
    except Exception as error:  # every number is on disk; whatever a page may stumble over must not fail a sweep
        log.warning("page of %s: %s: %s; `dbexp-compare %s` tries again", folder, type(error).__name__, error, folder)


def summary(planned: Plan, returns: Mapping[int, JobReturn], cfg: DictConfig) -> None:
    """The table of all runs, then every failure with its folder and the command that repeats it alone.

    Exceptions of failed jobs have then been told, and become one that says how many there were.
    """
    from dbexp.runs.folder import RunFolder

    # from the config: in what a job returns, Hydra has forgotten when `now` was
    show_results(Path(str(cfg.hydra.sweep.dir)), planned.runs[0].config.objective[0])
    failed = [job for job in planned.runs if returns[job.number].status is not JobStatus.COMPLETED]
    for job in failed:
        returned = returns[job.number]
        folder = job_folder(returned)
        log.error("%s failed: %s", job.title, _reason(returned))
        log.error("  folder     %s", folder)
        if (traceback := RunFolder(folder).traceback).exists():
            log.error("  traceback  %s", traceback)
        log.error("  repeat     %s", shlex.join(["dbexp", *_config_folders(cfg), *job.overrides]))
    for job in failed:
        returns[job.number].return_value = JobsFailed(f"{len(failed)} of {len(planned.runs)} jobs failed; see above")


def job_folder(returned: JobReturn) -> Path:
    """The folder of a job."""
    assert returned.hydra_cfg is not None
    return Path(str(returned.hydra_cfg.hydra.runtime.output_dir))


def _reason(returned: JobReturn) -> str:
    """First line of a failed job's exception, with its type where the type says something."""
    error = _work.error_of(returned)
    return first_line(error, typed=not isinstance(error, (ConfigError, HydraException)))


def _config_folders(cfg: DictConfig) -> list[str]:
    """The switches that gave Hydra more folders of options."""
    sources = cfg.hydra.runtime.config_sources
    return [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
