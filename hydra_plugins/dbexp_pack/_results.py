"""The callback that keeps a sweep's results.csv up to date, whatever launcher runs its jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

_PACK = "dbexp_pack"


class Results(Callback):
    """After each job of a sweep, in the process that ran it, results.csv is written anew from the sweep's folder.

    `hydra/launcher=pack` prints the jobs and the table itself; for every other launcher this does.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Let a search go on with its study."""
        from hydra_plugins.dbexp_pack import _search

        if _search.is_search(config):
            _search.resume(config)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write the results so far; print the job's line if nobody else will."""
        if not _is_sweep(config):
            return
        from hydra_plugins.dbexp_pack import _console

        _console.write_results(Path(str(config.hydra.sweep.dir)), _objective(config))
        if not _packs(config):
            words = " ".join(config.hydra.overrides.task)
            scores = _console.scores(Path(str(config.hydra.runtime.output_dir)))
            print(f"job {config.hydra.job.num} ({words})  {scores}", flush=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table if nobody else does. Hydra 1.3 leaves this out when a job failed."""
        if not _packs(config):
            from hydra_plugins.dbexp_pack import _console

            _console.show_results(Path(str(config.hydra.sweep.dir)), _objective(config))


def _is_sweep(config: DictConfig) -> bool:
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def _objective(config: DictConfig) -> str:
    """The column that ranks."""
    from dbexp.config.check import objectives

    return next(iter(objectives(config.objective)), "")  # none: the job has failed for it


def _packs(config: DictConfig) -> bool:
    return _PACK in str(config.hydra.launcher._target_)
