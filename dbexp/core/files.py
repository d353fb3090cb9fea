"""Files: written whole or not at all, shared safely, found in the package, and JSON that people can read."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"
"""Ends the name of a file that is being written; `sweep_up` deletes what a killed process left."""
PREFIX = "package:"
"""`package:storybook/weights` is the folder dbexp/storybook/weights, wherever dbexp is installed: the same words in a
config, and in its hash, on every machine."""
COPY_BYTES = 1 << 17
"""Files up to here are copied for root: the records of any model, and images of up to 128 pixels a side. Larger ones
would multiply on the disk, for the images of a base model belong to every run."""
TREE_COPY_BYTES = 1 << 20
"""The same for whole entries, such as a LoRA with its checkpoints: few runs share one."""
_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
_FICLONE = 0x40049409  # of linux/fs.h
_cannot_clone: set[int] = set()
"""Disks whose file system said so."""
_DEPTH = 3
_DIGITS = 8  # of hexadecimal, which tell the temporary files of several writers apart
_ATTEMPTS = 4


def write_atomic(path: Path, data: str | bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, whatever happens meanwhile.

    Args:
        path: the file; folders that it lacks are made.
        data: its content.
        durable: wait until the disk has it, for milliseconds, so that it outlives a loss of power too.

    Raises:
        OSError: it cannot be written; its `filename` is never missing, as it is when a disk turns out to be full.
    """

    def fill(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())

    try:
        _put(path, fill)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _put(path: Path, fill: Callable[[Path], None]) -> None:
    """Have a temporary file filled, and give it its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _ATTEMPTS + 1):
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:_DIGITS]}{TEMPORARY}")
        try:
            fill(temporary)
            os.replace(temporary, path)
            return
        except FileNotFoundError:  # somebody took it for one that a killed process had left
            if attempt == _ATTEMPTS or temporary.exists():
                raise
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def sweep_up(folder: Path, name: str | None = None, *, below: bool = False) -> None:
    """Delete what killed processes left half written; a live one whose temporary file goes too writes it once more.

    Args:
        folder: to look into; it need not be there.
        name: of the file that was being written; None: any.
        below: in the folders below it too.
    """
    pattern = f".{'*' if name is None else glob.escape(name)}.{'[0-9a-f]' * _DIGITS}{TEMPORARY}"
    with contextlib.suppress(OSError):
        for path in [*(folder.rglob(pattern) if below else folder.glob(pattern))]:
            path.unlink(missing_ok=True)


def link(source: Path, target: Path, copy_bytes: int = COPY_BYTES) -> None:
    """Give `target` the content of `source`, such that nobody who writes to one changes the other.

    Where the file system shares blocks until they are written (btrfs, XFS, bcachefs), that costs nothing. Elsewhere a
    hard link is for sealed files, and a copy for all others; root, whom no seal stops, gets copies of small sealed
    files too. What lies behind a symbolic link counts. Where `target` is there already, nothing is done.

    Args:
        source: a regular file, or a link to one.
        target: its folder is made; another file of this name is replaced.
        copy_bytes: size up to which a sealed file is copied for root.

    Raises:
        OSError: the source is missing or no regular file, or the target cannot be written.
    """
    state = source.stat()
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(source))
    shared = not state.st_mode & _WRITE and (state.st_size > copy_bytes or not os.access(source, os.W_OK))
    if _is_there(target, state, shared):
        return

    def fill(temporary: Path) -> None:
        cloned = _clone(source, temporary, state.st_dev)
        if cloned or not (shared and _hard_link(source, temporary)):
            if not cloned:
                shutil.copyfile(source, temporary)
            os.utime(temporary, ns=(state.st_atime_ns, state.st_mtime_ns))

    try:
        _put(target, fill)
    except OSError as error:
        if error.filename is None or error.errno in (errno.ENOSPC, errno.EDQUOT):  # copying names its source first
            error.filename = str(target)
        raise


def link_tree(source: Path, target: Path, skip: str = "", copy_bytes: int = TREE_COPY_BYTES) -> None:
    """`link` every file of a folder into another, except those whose name is `skip`; links to folders are followed."""
    for folder, below, names in os.walk(source, followlinks=True):
        above = {
            os.path.realpath(path) for path in (Path(folder), *Path(folder).parents) if path.is_relative_to(source)
        }
        below[:] = [name for name in sorted(below) if os.path.realpath(Path(folder, name)) not in above]
        for name in sorted(names):
            path = Path(folder, name)
            if name != skip and path.is_file():
                link(path, target / path.relative_to(source), copy_bytes)


def seal(path: Path) -> None:
    """Take from everybody the right to write to a file, so that it may be shared; not possible on Windows."""
    if os.name == "posix":
        with contextlib.suppress(OSError):  # of somebody else's store
            mode = path.stat().st_mode
            if mode & _WRITE:
                path.chmod(stat.S_IMODE(mode) & ~_WRITE)


def _is_there(target: Path, state: os.stat_result, shared: bool) -> bool:
    """Whether a target is what `link` made of a source before: of its size and time, and not bound to it."""
    try:
        present = target.lstat()
    except OSError:
        return False
    equal = (present.st_size, present.st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    return equal and stat.S_ISREG(present.st_mode) and (shared or not os.path.samestat(present, state))


def _clone(source: Path, target: Path, disk: int) -> bool:
    """Make a file that shares its blocks with another one on this disk; False where the file system cannot."""
    if sys.platform != "linux" or disk in _cannot_clone or target.parent.stat().st_dev != disk:
        return False
    import fcntl

    try:
        with source.open("rb") as original, target.open("xb") as clone:
            fcntl.ioctl(clone.fileno(), _FICLONE, original.fileno())
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS):
            _cannot_clone.add(disk)
        return False
    return True


def _hard_link(source: Path, target: Path) -> bool:
    try:
        os.link(os.path.realpath(source), target)  # of a symbolic link, Linux would link the link
    except OSError:  # another disk, say, or as many links as a file may have
        return False
    return True


def locate(path: str) -> Path:
    """The place that `path` names; whether something is there is for the caller to say."""
    if path.startswith(PREFIX):
        return Path(__file__).parents[1] / path.removeprefix(PREFIX)
    return Path(path).expanduser()


def readable(value: Any, depth: int = _DEPTH, indent: int = 0) -> str:
    """A value as JSON for people to look into: an entry a line down to some depth, and below it all of one in its line.

    A table of hundreds of pictures is easier to read with a line for each than with twenty, and is written many times
    faster: Python's JSON library falls back to slow code when it is asked to indent.

    Args:
        value: dicts with texts as keys, lists, texts, numbers, None.
        depth: levels whose entries get lines of their own.
        indent: spaces before the closing bracket.
    """
    if depth and isinstance(value, dict) and value:
        lines = [f"{_compact(str(key))}: {readable(one, depth - 1, indent + 1)}" for key, one in value.items()]
        return _lines("{}", lines, indent)
    if depth and isinstance(value, list) and value:
        return _lines("[]", [readable(one, depth - 1, indent + 1) for one in value], indent)
    return _compact(value)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _lines(brackets: str, lines: list[str], indent: int) -> str:
    start = "\n" + " " * (indent + 1)
    return brackets[0] + start + f",{start}".join(lines) + "\n" + " " * indent + brackets[1]
