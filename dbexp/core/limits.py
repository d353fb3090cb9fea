"""What a process may use of a machine's memory: limits of the shell and of control groups, known without torch."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from dbexp.core.errors import ConfigError, byte_size, lacks_memory

_NO_LIMIT = 1 << 60
"""A cgroup of version 1 without a limit has one that is larger than this."""
_ROOMY = 8 << 30
"""Bytes within which the libraries always fit: torch with CUDA maps 3 GB, and all of them together 4 GB."""

_SPARE = 1 << 27
"""Bytes that must be left once everything is loaded: with less, no batch fits, and Python itself fails anywhere."""
_PATIENCE, _GLANCE = 300.0, 0.05
"""Seconds that loading may take, and between looks."""


def left_of_limits() -> dict[str, int]:
    """Bytes that `ulimit -v` and `ulimit -d` leave, by these names; empty where there is no limit."""
    if os.name != "posix":
        return {}
    import resource

    used = psutil.Process().memory_info()
    limits = {
        "ulimit -v": (resource.RLIMIT_AS, used.vms),
        "ulimit -d": (resource.RLIMIT_DATA, getattr(used, "data", 0)),
    }
    soft = {name: (resource.getrlimit(kind)[0], size) for name, (kind, size) in limits.items()}
    return {name: limit - size for name, (limit, size) in soft.items() if limit != resource.RLIM_INFINITY}


def rehearse(work: Callable[[], object]) -> None:
    """Under a tight limit, do in a forked process first what loads libraries and networks, and say if that one died.

    Where next to nothing can be allocated, libraries of C++ end the process: no exception tells of it, and only another
    process can. Whatever the work raises is left to be met again. Nothing is done where limits are wide, or where torch
    is loaded already: then the worst is over, and its threads would not live on in a fork.

    Args:
        work: may write to the store, as the same work does again here.

    Raises:
        ConfigError: it does not survive.
    """
    tight = {name: left for name, left in left_of_limits().items() if left < _ROOMY}
    if not tight or "torch" in sys.modules or not hasattr(os, "fork"):
        return
    child = os.fork()
    if child == 0:
        _quietly(work)
    if not _ends_well(child):
        name, left = min(tight.items(), key=lambda item: item[1])
        raise ConfigError(
            f"memory did not suffice for the libraries and networks: {name} leaves {byte_size(max(left, 0))}; raise "
            "it, or choose smaller networks for model and evaluate"
        )


def _ends_well(child: int) -> bool:
    """Whether a process ends with status 0, and before patience does: threads may wait for one that never began."""
    deadline, done, status = time.monotonic() + _PATIENCE, 0, 1
    try:
        while not done and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(_GLANCE)
    finally:
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return bool(done) and status == 0


def _quietly(work: Callable[[], object]) -> None:
    """Do it, say nothing, and end this process: with status 0 if the same may be done again by another."""
    status = 1
    with contextlib.suppress(MemoryError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        enough = True
        try:
            work()
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            enough = not (lacks_memory(error) or (error.__context__ and lacks_memory(error.__context__)))
        except BaseException:  # what libraries of Rust raise where C++ aborts
            enough = False
        bytearray(_SPARE)
        status = 0 if enough else 1
    os._exit(status)


def left_of_cgroups(listing: Path, root: Path) -> Iterator[int]:
    """Bytes that the control groups of a container or a scheduler leave: of this process's and of each above it.

    Args:
        listing: names the groups of this process.
        root: where they are mounted.
    """
    with contextlib.suppress(OSError):
        for line in listing.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                mount, names = root, ("memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                mount = root / "memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            else:
                continue
            group = mount / path.strip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(mount) and (left := _left_of_cgroup(folder, *names)) is not None:
                    yield left


def _left_of_cgroup(folder: Path, limit: str, usage: str, cache: str) -> int | None:
    """None where a group has no limit, or is not visible from inside its container."""
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # "max", say
        return None
    return None if most >= _NO_LIMIT else most - used + int(counts.get(cache, 0))  # the cache of files gives way
