"""Who runs packs: this process, processes of this machine, a cluster. Each is a generator of (job number, return).

A pack whose worker was lost is tried once more; what it had finished it finds in the store. dbexp schedules nothing:
who gets which machine when is submitit's and Ray's affair.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Generator, Mapping, Sequence

from dbexp.core.errors import needs
from hydra_plugins.dbexp_pack import _gpus, _work
from hydra_plugins.dbexp_pack._settings import PackLauncherConf
from hydra_plugins.dbexp_pack._work import PackWork, Returned

Executor = Callable[[PackLauncherConf, Sequence[PackWork]], Generator[Returned, None, None]]

ELSEWHERE = ("submitit", "ray")
"""Executors whose workers may be on machines with other devices than this one's."""
_LIBRARIES = {"submitit": ("submitit", "slurm"), "ray": ("ray", "ray")}
"""Executor -> the library it needs, and the extra of this package that installs it."""
_CLUSTERS = ("slurm", "local", "debug")


def problems(settings: PackLauncherConf) -> list[str]:
    """What is wrong with the settings of executors."""
    name = settings.executor
    if name not in EXECUTORS:
        return [f"hydra.launcher.executor={name}: choose one of {', '.join(EXECUTORS)}"]
    messages = []
    if settings.devices is not None and name != "gpus":
        messages.append(f"hydra.launcher.devices={settings.devices}: only executor=gpus has devices to choose")
    if name in _LIBRARIES:
        library, extra = _LIBRARIES[name]
        if importlib.util.find_spec(library) is None:
            messages.append(f"hydra.launcher.executor={name}: {needs(library, extra)}")
    cluster = settings.submitit.cluster
    if name == "submitit" and cluster not in _CLUSTERS:
        messages.append(f"hydra.launcher.submitit.cluster={cluster}: choose one of {', '.join(_CLUSTERS)}")
    if name == "gpus":
        messages += _gpus.problems(settings)
    return messages


def workers(settings: PackLauncherConf) -> int:
    """How many packs run at a time, where that is known; 1 where it is not."""
    return len(_gpus.devices(settings)) if settings.executor == "gpus" else 1


def _inline(settings: PackLauncherConf, works: Sequence[PackWork]) -> Generator[Returned, None, None]:
    for work in works:
        yield from _work.run(work)


def _submitit(settings: PackLauncherConf, works: Sequence[PackWork]) -> Generator[Returned, None, None]:
    from hydra_plugins.dbexp_pack import _submitit

    return _submitit.run(settings.submitit, works)


def _ray(settings: PackLauncherConf, works: Sequence[PackWork]) -> Generator[Returned, None, None]:
    from hydra_plugins.dbexp_pack import _ray

    return _ray.run(settings.ray, works)


EXECUTORS: Mapping[str, Executor] = {"inline": _inline, "gpus": _gpus.run, "submitit": _submitit, "ray": _ray}
