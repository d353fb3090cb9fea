"""Get-or-make by content: what was computed once is never computed again, and never half there.

An entry is a folder named by the sha256 of everything its content depends on: stage, version of the stage's code, and
inputs (resolved settings and hashes of files). Where things are written, how runs are called and whether they are
tracked is no part of a key.

Life of an entry: under a lock of its key, `make` fills a working folder beside the final place. The working folder
survives a crash and is handed to `make` again, which may go on where it stopped (image by image, checkpoint by
checkpoint). When `make` returns, files are flushed, a manifest with their sizes and hashes is written last, one rename
publishes the entry, and its files are sealed against writing. A process checks every file against the manifest at its
first use and whenever its size or time has changed since; a damaged entry is dropped and made again. Files above
`LARGE_BYTES` are read for it only if their size or time is not the one at which they were last read, by whatever
process; `damaged` reads all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from dbexp.core.errors import ConfigError
from dbexp.core.files import TEMPORARY, seal, sweep_up, write_atomic
from dbexp.core.folders import PARTIAL
from dbexp.core.hashing import file_hash, key_of

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PACKS = "packs"
"""Folder of the states of packs that were interrupted (`dbexp.train.resume`)."""
DOOMED = ".doomed"
"""Ends the name of an entry that is being deleted."""
HASHES = "hashes"
"""Folder of remembered hashes of large files."""
LARGE_BYTES = 1 << 24
"""Files above this are not read by every process that uses them: 16 MiB take 0.02 s, base weights take seconds."""
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_NO_SPACE = ("No space left on device", "os error 28", "Disk quota exceeded")

_FIELDS = 3  # of the state of a file

roots: set[Path] = set()
"""Of the stores that this process has opened."""
_checked: dict[Path, int] = {}
"""Entry -> hash of the states of its files at which this process found their bytes right."""


def lock_of(path: Path) -> FileLock:
    """The lock of an entry, held by whoever makes it, looks whether it is there, or deletes it."""
    return FileLock(f"{path}.lock")


class Entry:
    """One entry while its lock is held.

    Attributes:
        folder: to read from when `finished`, to fill when not.
        path: where the finished entry is, or will be.
        finished: whether everything is there.
    """

    def __init__(self, folder: Path, path: Path, inputs: Mapping[str, Any]) -> None:
        self.folder, self.path, self._inputs = folder, path, inputs
        self.finished = folder == path

    def publish(self) -> None:
        """Flush every file, write the manifest, and give the folder its final name."""
        files = {}
        for path in sorted(self.folder.rglob("*")):
            if path.name.endswith(TEMPORARY):
                path.unlink()
            elif path.is_file() and path != self.folder / MANIFEST:  # an attempt that was killed right here left one
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                name = path.relative_to(self.folder).as_posix()
                files[name] = {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        manifest = {"inputs": dict(self._inputs), "files": files}
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True))
        states = _states(self.folder, files)
        os.replace(self.folder, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        for name in files:
            seal(self.path / name)
        _checked[self.path] = hash(states)
        self.folder, self.finished = self.path, True


class Store:
    """A folder of entries, safe for several processes at once.

    Args:
        root: where entries live; None: `dbexp` in the user's cache directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or user_cache_path("dbexp")).expanduser().absolute()
        roots.add(self.root)

    @classmethod
    def of(cls, root: str | None) -> Store:
        """The store that a config names; None and the empty text name the usual one."""
        return cls(Path(root) if root else None)

    def path(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """Folder in which the entry of these inputs is, or would be."""
        key = key_of({"stage": stage, **inputs})
        return self.root / stage / key[:2] / key

    def find(self, stage: str, inputs: Mapping[str, Any]) -> Path | None:
        """The finished, undamaged entry of these inputs, or None."""
        path = self.path(stage, inputs)
        if not self._intact(path):
            return None
        _touch(path)
        return path

    def get(self, stage: str, inputs: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """The entry of these inputs, made first if it is missing or damaged.

        Args:
            stage: name of the stage, a folder of the store.
            inputs: JSON-like; everything the content depends on, including a `version` of the code that makes it.
            make: fills the folder it is given. The folder may hold what an interrupted call left there.

        Returns:
            The finished entry's folder, to be read only.

        Raises:
            Whatever `make` raises; its folder is kept for the next call.
        """
        with self.hold(stage, inputs) as entry:
            if not entry.finished:
                make(entry.folder)
                entry.publish()
            return entry.folder

    @contextlib.contextmanager
    def hold(self, stage: str, inputs: Mapping[str, Any]) -> Iterator[Entry]:
        """Hold the lock of an entry: for a maker of several entries at once. `get` is the usual way in.

        Somebody who claims several entries must claim them in the order of `path`, or two such could wait for each
        other for ever. What is finished needs no lock, so a store that may only be read will do for it.

        Yields:
            The entry. If it is not `finished`, fill its `folder`, then call its `publish`.

        Raises:
            ConfigError: the root of the store is no folder, or the entry is not there and may not be written.
            OSError: the disk is full; `filename` says where, also of what a library raised in its own words.
        """
        path, inputs = self.path(stage, inputs), {"stage": stage, **inputs}
        if (folder := self.find(stage, inputs)) is not None:
            log.debug("store: found %s %s", stage, path.name[:12])
            yield Entry(folder, path, inputs)
            return
        with self._locked(stage, path):
            if self._intact(path):
                _touch(path)
                yield Entry(path, path, inputs)
                return
            if path.exists():
                log.warning("store: %s is damaged and is made again", path)
                remove(path)
            work = self.partial(stage, inputs)
            work.mkdir(exist_ok=True)
            with _disk_named(work):
                yield Entry(work, path, inputs)

    @contextlib.contextmanager
    def _locked(self, stage: str, path: Path) -> Iterator[None]:
        """Hold the lock of an entry that is to be made."""
        lock = lock_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"store={self.root}: is a file or lies inside one; give the path of a folder") from None
        except FileNotFoundError:  # a place that the system does not let anybody make folders in
            raise ConfigError(f"store={self.root}: no folder can be made there; give another path") from None
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
            raise ConfigError(
                f"store={self.root}: may not be written ({error.strerror}), and lacks an entry of stage {stage}; "
                "give a folder that may be, store=FOLDER"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def peek(self, stage: str, inputs: Mapping[str, Any]) -> Entry:
        """The entry as it is now, without its lock: for a process on whose behalf another one holds it."""
        path = self.path(stage, inputs)
        folder = path if self._intact(path) else self.partial(stage, inputs)
        return Entry(folder, path, {"stage": stage, **inputs})

    def file_hash(self, path: Path) -> str:
        """sha256 of a file, remembered by its place, size and time: hashing gigabytes of weights takes seconds."""
        real = path.resolve()
        memo = self._memo(real)
        with contextlib.suppress(OSError):
            return memo.read_text()
        digest = file_hash(real)
        sweep_up(memo.parent, memo.name)
        with contextlib.suppress(OSError):  # a store that may only be read, or a full one, is as good
            write_atomic(memo, digest)
        return digest

    def _memo(self, real: Path) -> Path:
        """Where the hash of a file is remembered."""
        state = real.stat()
        memo = key_of({"path": str(real), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns})
        return self.root / HASHES / memo[:2] / memo

    def partial(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """Where an unfinished entry is being made (it need not exist)."""
        path = self.path(stage, inputs)
        return path.with_name(f"{path.name}{PARTIAL}")

    def _intact(self, path: Path) -> bool:
        """Whether every file of the manifest is there with its size and, as far as the rule above goes, its bytes."""
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
            states = _states(path, files)
            if states[::_FIELDS] != tuple(files[name]["bytes"] for name in sorted(files)):
                return False
            if _checked.get(path) != hash(states):
                for name, entry in files.items():
                    hash_of = self.file_hash if entry["bytes"] > LARGE_BYTES else file_hash
                    if hash_of(path / name) != entry["sha256"]:
                        return False
                    seal(path / name)
                _checked[path] = hash(states)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        return True

    def damaged(self, path: Path) -> list[str]:
        """Names of the files of an entry whose bytes are no longer those of the manifest; all are read.

        Whatever is remembered of a damaged entry is forgotten, so that its next use makes it again.

        Raises:
            OSError, ValueError, KeyError, TypeError: the manifest itself is missing or damaged.
        """
        manifest = json.loads((path / MANIFEST).read_text())
        if key_of(manifest["inputs"]) != path.name:
            raise ValueError("the manifest is not that of this entry")
        wrong = [name for name, entry in manifest["files"].items() if not _is_whole(path / name, entry["sha256"])]
        for name in wrong:
            with contextlib.suppress(OSError):
                self._memo((path / name).resolve()).unlink(missing_ok=True)
        if wrong:
            _checked.pop(path, None)
        return wrong


def _states(folder: Path, files: Iterable[str]) -> tuple[int, ...]:
    """Size, time and number of each file, one after the other."""
    states = [(folder / name).stat() for name in sorted(files)]
    return tuple(value for state in states for value in (state.st_size, state.st_mtime_ns, state.st_ino))


def _is_whole(path: Path, digest: str) -> bool:
    try:
        return path.is_file() and file_hash(path) == digest
    except OSError:  # what a disk says of a sector that it cannot read
        return False


@contextlib.contextmanager
def _disk_named(folder: Path) -> Iterator[None]:
    """Whatever says in the block that the disk is full says where."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # one that comes with words of its own is shown by its file name alone
            error.filename = error.filename or str(folder)
        raise
    except Exception as error:
        if any(words in str(error) for words in _NO_SPACE) and not isinstance(error, ConfigError):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


def _touch(path: Path) -> None:
    """Note that an entry was used now: the time of its manifest says when somebody last did."""
    with contextlib.suppress(OSError):  # a store that may only be read is as good as any other
        os.utime(path / MANIFEST)


def remove(path: Path) -> None:
    """Move an entry out of the way before deleting it, so that no reader finds half of it."""
    doomed = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{DOOMED}")
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
