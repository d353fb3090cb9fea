"""Folders that one process writes to: a new one whatever the clock says, a lock on one that a user named, and neither
left behind where nothing came of it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path

from dbexp.core.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no lock on a folder; there two processes are told apart by `fresh` alone
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

PARTIAL = ".partial"
"""Ends the name of a folder that is being filled."""
_locks: dict[Path, int] = {}
"""Folder -> open file of each lock that this process holds."""
_made: list[Path] = []
"""Folders that this process made, each after those above it."""
_called: dict[str, Path] = {}
"""Parameter -> folder that `fresh` made for it last."""
latest: dict[str, Path] = {}
"""Parameter -> folder that this process asked for last, with `hold`."""


def obstacle(path: Path) -> str | None:
    """Why nothing can be written below a folder that is there or is to be made; None: nothing stands in the way.

    Makes nothing, so that all of this can be asked before anything is computed.
    """
    for place in (path, *path.parents):
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # a name that no disk takes, a circle of links, no right to look there
            return getattr(error, "strerror", None) or str(error)
        if not stat.S_ISDIR(mode):
            return "is a file" if place == path else f"{place} is a file"
        return None if os.access(place, os.W_OK | os.X_OK) else f"nothing may be written to {place}"
    return None


def unusable(field: str, path: str | None, *, readable: bool = False) -> list[str]:
    """What is wrong with a folder that a user named to write to, as a message.

    Args:
        field: that names it.
        path: None: nobody named one.
        readable: whether one that is there will do if it can be read.
    """
    try:
        folder = None if path is None else Path(path).expanduser()
        fault = None if folder is None or (readable and folder.is_dir()) else obstacle(folder)
    except (OSError, RuntimeError):  # a name that no disk takes, or no such user: the check of the field tells
        return []
    return [f"{field}={path}: {fault}; give a folder: choose another place with {field}=FOLDER"] if fault else []


@contextlib.contextmanager
def working_in(path: Path) -> Iterator[None]:
    """Relative paths start at a folder during the block."""
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


def _make(path: Path) -> None:
    """Make a folder and those above it, and remember which of them were not there; FileExistsError as `Path.mkdir`."""
    missing = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    _made.extend(reversed(missing))
    path.mkdir()
    _made.append(path)


def take_back(names: Collection[str]) -> None:
    """Delete the folders that this process made with `fresh` or `hold` and in which nothing came to be.

    Args:
        names: of files and folders that do not count.
    """
    while _made:
        folder = _made.pop()
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} <= {*names}:
                for name in names:
                    path = folder / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                folder.rmdir()


def fresh(path: Path, field: str | None = None) -> Path:
    """Make a folder that was not there before: `path`, or with -2, -3, ... behind its name.

    Making it is what claims it, so of two processes that ask at once each gets its own.

    Args:
        path: as it should be called.
        field: parameter that would name it, see `again`.

    Raises:
        OSError: nothing can be made there.
    """
    for number in count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            _make(candidate)
            if field is not None:
                _called[field] = candidate
            return candidate
    raise AssertionError("numbers do not end")


def again(field: str) -> str:
    """`, in the same folder with FIELD=FOLDER`, to put after the advice to repeat a command where nobody typed the name
    of the folder; otherwise empty."""
    path = _called.get(field)
    return f", in the same folder with {field}={path}" if path is not None and path.is_dir() else ""


def hold(path: Path, field: str) -> None:
    """Lock a folder until `release_all`, or the end of the process; it leaves no file behind.

    Args:
        path: is made if it is not there.
        field: parameter that named it, for the message.

    Raises:
        ConfigError: another live process holds it.
        OSError: nothing can be made there.
    """
    latest[field] = path
    if _called.get(field) != path:
        _called.pop(field, None)
    try:
        _make(path)
    except FileExistsError:
        if not path.is_dir():
            raise
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


@contextlib.contextmanager
def unfinished(path: Path, field: str) -> Iterator[Path]:
    """An empty folder beside another one, to make something in that is then moved there; it is gone after the block.
    What a killed process left in it goes first.

    Args:
        path: of the other one; those above it are made.
        field: parameter that named it.

    Raises:
        ConfigError: another live process makes something for the same place.
        OSError: nothing can be made there.
    """
    folder = path.with_name(f".{path.name}{PARTIAL}")
    hold(folder, field)
    try:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _release(folder.resolve())


def _release(path: Path) -> None:
    if (file := _locks.pop(path, None)) is not None:
        os.close(file)


def release_all() -> None:
    """Give back every lock of this process."""
    while _locks:
        os.close(_locks.popitem()[1])
