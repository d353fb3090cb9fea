"""Registers `hydra/launcher=pack`. Every Hydra program of the environment imports this file, so it imports little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.dbexp_pack._settings import HalvingConf, PackLauncherConf


class PackLauncher(Launcher):
    """Checks all jobs before the first starts, trains them in packs, then runs each as an ordinary Hydra job.

    Args:
        settings: fields of `PackLauncherConf`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = PackLauncherConf(**settings)
        self.config: DictConfig | None = None
        self.task_function: TaskFunction | None = None
        self.hydra_context: HydraContext | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what jobs are made of."""
        from hydra_plugins.dbexp_pack import _composing

        _composing.remember(hydra_context.config_loader)
        self.config, self.task_function, self.hydra_context = config, task_function, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs; one return per job, in order."""
        from hydra_plugins.dbexp_pack import _launch

        assert self.config is not None and self.task_function is not None and self.hydra_context is not None
        program = _launch.Program(self.config, self.task_function, self.hydra_context)
        return _launch.launch(self.settings, program, job_overrides, initial_job_idx)


ConfigStore.instance().store(group="hydra/launcher", name="pack", node=PackLauncherConf, provider="dbexp")
ConfigStore.instance().store(group="hydra/launcher/halving", name="none", node=HalvingConf, provider="dbexp")
for name in ("successive", "hyperband", "median"):
    ConfigStore.instance().store(
        group="hydra/launcher/halving",
        name=name,
        node=HalvingConf(rungs=[100, 200, 400], pruner=name),
        provider="dbexp",
    )
