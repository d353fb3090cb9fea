"""Registers `hydra/launcher=pack`. Every Hydra program of the environment imports this file, so it imports little."""

# no `from __future__ import annotations`: Hydra executes this module before it is in sys.modules, and dataclasses break
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@dataclass
class PackLauncherConf:
    """Settings of the launcher, under `hydra.launcher`."""

    _target_: str = "hydra_plugins.dbexp_pack.launcher.PackLauncher"
    size: int | None = None
    """Most runs that train together; null: 8."""
    plan_only: bool = False
    """Check all jobs, print what would be done, and stop."""


class PackLauncher(Launcher):
    """Checks all jobs before the first starts, trains them in packs, then runs each as an ordinary Hydra job.

    Args:
        size, plan_only: see `PackLauncherConf`.
    """

    def __init__(self, size: int | None = None, plan_only: bool = False) -> None:
        self.size, self.plan_only = size, plan_only
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what jobs are made of."""
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; one return per job, in order."""
        from hydra_plugins.dbexp_pack import _core

        return _core.launch(self, job_overrides, initial_job_idx)


ConfigStore.instance().store(group="hydra/launcher", name="pack", node=PackLauncherConf, provider="dbexp")
