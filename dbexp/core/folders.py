"""Folders that one process writes to: a new one whatever the clock says, and a lock on one that a user named."""

from __future__ import annotations

import contextlib
import os
from itertools import count
from pathlib import Path

from dbexp.core.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no lock on a folder; there two processes are told apart by `fresh` alone
    fcntl = None  # type: ignore[assignment]

_locks: dict[Path, int] = {}
"""Folder -> open file of each lock that this process holds."""


def fresh(path: Path) -> Path:
    """Make a folder that was not there before: `path`, or with -2, -3, ... behind its name.

    Making it is what claims it, so of two processes that ask at once each gets its own.

    Raises:
        OSError: nothing can be made there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            candidate.mkdir()
            return candidate
    raise AssertionError("numbers do not end")


def hold(path: Path, field: str) -> None:
    """Lock a folder until `release_all`, or the end of the process; it leaves no file behind.

    Args:
        path: is made if it is not there.
        field: parameter that named it, for the message.

    Raises:
        ConfigError: another live process holds it.
        OSError: nothing can be made there.
    """
    path.mkdir(parents=True, exist_ok=True)
    path = path.resolve()
    if fcntl is None or path in _locks:
        return
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        raise ConfigError(
            f"{field}={path}: another process that still runs writes to this folder; wait for it, or name another"
        ) from None
    except OSError:  # a disk without locks
        os.close(file)
        return
    _locks[path] = file


def release_all() -> None:
    """Give back every lock of this process."""
    while _locks:
        os.close(_locks.popitem()[1])
