"""Who runs packs: this process, processes of this machine, a cluster. Each is a generator of (job number, return).

A pack whose worker was lost is tried once more; what it had finished it finds in the store. dbexp schedules nothing:
who gets which machine when is submitit's and Ray's affair.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra_plugins.dbexp_pack import _gpus, _work
from hydra_plugins.dbexp_pack._work import Returned, Work

if TYPE_CHECKING:
    from hydra_plugins.dbexp_pack.launcher import PackLauncher

Executor = Callable[["PackLauncher", Sequence[Work]], Generator[Returned, None, None]]

ELSEWHERE = ("submitit", "ray")
"""Executors whose workers may be on machines with other devices than this one's."""
_LIBRARIES = {"submitit": ("submitit", "slurm"), "ray": ("ray", "ray")}
"""Executor -> the library it needs, and the extra of this package that installs it."""


def problems(launcher: PackLauncher) -> list[str]:
    """What is wrong with the settings of executors."""
    name = launcher.executor
    if name not in EXECUTORS:
        return [f"hydra.launcher.executor={name}: choose one of {', '.join(EXECUTORS)}"]
    found = []
    if launcher.devices is not None and name != "gpus":
        found.append(f"hydra.launcher.devices={list(launcher.devices)}: only executor=gpus has devices to choose")
    if name in _LIBRARIES:
        library, extra = _LIBRARIES[name]
        if importlib.util.find_spec(library) is None:
            found.append(f"hydra.launcher.executor={name}: needs the package {library}; pip install 'dbexp[{extra}]'")
    clusters = ("slurm", "local", "debug")
    if name == "submitit" and launcher.submitit.get("cluster") not in clusters:
        chosen = launcher.submitit.get("cluster")
        found.append(f"hydra.launcher.submitit.cluster={chosen}: choose one of {', '.join(clusters)}")
    if name == "gpus":
        found += _gpus.problems(launcher)
    return found


def workers(launcher: PackLauncher) -> int:
    """How many packs run at a time, where that is known; 1 where it is not."""
    return len(_gpus.devices(launcher)) if launcher.executor == "gpus" else 1


def _inline(launcher: PackLauncher, works: Sequence[Work]) -> Generator[Returned, None, None]:
    for work in works:
        yield from _work.run(work)


def _submitit(launcher: PackLauncher, works: Sequence[Work]) -> Generator[Returned, None, None]:
    from hydra_plugins.dbexp_pack import _submitit

    return _submitit.run(launcher, works)


def _ray(launcher: PackLauncher, works: Sequence[Work]) -> Generator[Returned, None, None]:
    from hydra_plugins.dbexp_pack import _ray

    return _ray.run(launcher, works)


EXECUTORS: Mapping[str, Executor] = {"inline": _inline, "gpus": _gpus.run, "submitit": _submitit, "ray": _ray}


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as dicts and lists, without those that are null."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(settings, resolve=True) if OmegaConf.is_config(settings) else dict(settings)
    return {str(name): value for name, value in values.items() if value is not None}
