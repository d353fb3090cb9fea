"""Registers `hydra/launcher=pack`. Every Hydra program of the environment imports this file, so it imports little."""

# no `from __future__ import annotations`: Hydra executes this module before it is in sys.modules, and dataclasses break
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger(__name__)


@dataclass
class SubmititConf:
    """How `executor=submitit` asks for a job; null leaves a setting to the cluster. Names are those of sbatch."""

    cluster: str = "slurm"
    """slurm; local: processes of this machine, all at once; debug: this process, for looking at faults."""
    folder: str = "${hydra.sweep.dir}/.submitit/%j"
    """Logs and results of the cluster's jobs, on a disk that all machines share; %j is the job's id."""
    name: str = "${hydra.job.name}"
    """What the queue calls a job."""
    timeout_min: int = 240
    """Longest time of a pack, in minutes. A pack that needs more is queued again and goes on at its last checkpoint."""
    max_num_timeout: int = 10
    """How often a pack may be queued again after its time was up."""
    cpus_per_task: int | None = None
    """CPU cores of a pack."""
    gpus_per_node: int | None = None
    """GPUs of a pack; it uses one."""
    mem_gb: float | None = None
    """Memory of a pack, in GB."""
    partition: str | None = None
    """Slurm partition."""
    account: str | None = None
    """Whom the time is charged to."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that a node must have."""
    array_parallelism: int = 256
    """Most packs at a time."""
    setup: list[str] | None = None
    """Shell commands before the pack, such as `module load cuda`."""
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    """Any other option of sbatch, by its long name."""


@dataclass
class RayConf:
    """How `executor=ray` asks for a task."""

    init: dict[str, Any] = field(default_factory=dict)
    """Arguments of ray.init, such as address; by default Ray starts on this machine."""
    remote: dict[str, Any] = field(default_factory=dict)
    """Arguments of ray.remote for a pack, such as num_cpus, num_gpus and memory."""


@dataclass
class PackLauncherConf:
    """Settings of the launcher, under `hydra.launcher`."""

    _target_: str = "hydra_plugins.dbexp_pack.launcher.PackLauncher"
    size: int | None = None
    """Most runs that train together; null: as many as are useful and as memory allows, which the log explains."""
    plan_only: bool = False
    """Check all jobs, print what would be done, and stop."""
    executor: str = "inline"
    """Who runs packs. inline: this process; gpus: a process per GPU of this machine; submitit: a Slurm job per pack; ray: a Ray task per pack."""  # noqa: E501
    devices: list[str] | None = None
    """For gpus: GPUs as CUDA_VISIBLE_DEVICES names them, or `cpu`, once per process; null: all GPUs of this machine."""
    submitit: SubmititConf = field(default_factory=SubmititConf)
    """For submitit."""
    ray: RayConf = field(default_factory=RayConf)
    """For ray."""


class PackLauncher(Launcher):
    """Checks all jobs before the first starts, trains them in packs, then runs each as an ordinary Hydra job.

    Args:
        size, plan_only, executor, devices, submitit, ray: see `PackLauncherConf`.
    """

    def __init__(
        self,
        size: int | None = None,
        plan_only: bool = False,
        executor: str = "inline",
        devices: Sequence[str] | None = None,
        submitit: Mapping[str, Any] | None = None,
        ray: Mapping[str, Any] | None = None,
    ) -> None:
        self.size, self.plan_only, self.executor, self.devices = size, plan_only, executor, devices
        self.submitit, self.ray = submitit or {}, ray or {}
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

        return _launch.launch(self, job_overrides, initial_job_idx)


ConfigStore.instance().store(group="hydra/launcher", name="pack", node=PackLauncherConf, provider="dbexp")
