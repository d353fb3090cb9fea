"""The settings of the launcher, under `hydra.launcher`. Every Hydra program of the environment imports this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
class HalvingConf:
    """Stopping runs early that promise little; an option of hydra/launcher/halving. Needs the extra `optuna`."""

    rungs: list[int] = field(default_factory=list)
    """Optimizer steps at which all runs that have not ended are judged, rising; empty: none is stopped."""
    pruner: str = "successive"
    """Who decides, of Optuna's pruners. successive: the best 1 / factor of the runs go on (SuccessiveHalvingPruner);
    hyperband: some brackets of runs begin to be judged later (HyperbandPruner); median: those go on that are no worse
    than the median (MedianPruner)."""
    factor: int = 2
    """Of successive and hyperband: one in so many goes on."""
    judge: str = "loss"
    """By what. loss: the loss on fixed pictures, times and noise, at the price of a forward pass; draw: the first
    objective, of a few images."""
    prompts: int = 4
    """For draw: prompts, spread over the run's list."""
    images: int = 1
    """For draw: images of each of these prompts, from the same noise for all runs."""
    steps: int | None = None
    """For draw: sampling steps; null: the run's own."""


@dataclass
class PackLauncherConf:
    """Settings of the launcher: for Hydra the schema, for the launcher their values."""

    _target_: str = "hydra_plugins.dbexp_pack.launcher.PackLauncher"
    _convert_: str = "object"
    size: int | None = None
    """Most runs that train together; null: as many as are useful and as memory allows, which the log explains."""
    plan_only: bool = False
    """Check all jobs, print what would be done, and stop."""
    executor: str = "inline"
    """Who runs packs. inline: this process; gpus: a process per GPU of this machine; submitit: a Slurm job per pack;
    ray: a Ray task per pack."""
    devices: list[str] | None = None
    """For gpus: GPUs as CUDA_VISIBLE_DEVICES names them, or `cpu`, once per process; null: all GPUs of this machine."""
    submitit: SubmititConf = field(default_factory=SubmititConf)
    """For submitit."""
    ray: RayConf = field(default_factory=RayConf)
    """For ray."""
    halving: HalvingConf = field(default_factory=HalvingConf)
    """Whether runs race, and how."""


def without_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not left to the library."""
    return {name: value for name, value in settings.items() if value is not None}
