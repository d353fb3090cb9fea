"""Get-or-make by content: what was computed once is never computed again, and never half there.

An entry is a folder named by the sha256 of everything its content depends on: stage, version of the stage's code, and
inputs (resolved settings and hashes of files). Where things are written, how runs are called and whether they are
tracked is no part of a key.

Life of an entry: under a lock of its key, `make` fills a working folder beside the final place. The working folder
survives a crash and is handed to `make` again, which may go on where it stopped (image by image, checkpoint by
checkpoint). When `make` returns, files are flushed, a manifest with their sizes and hashes is written last, and one
rename publishes the entry. A reader checks the manifest; a damaged entry is dropped and made again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_path

from dbexp.core.errors import ConfigError
from dbexp.core.files import TEMPORARY, write_atomic
from dbexp.core.hashing import file_hash, key_of

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PACKS = "packs"
"""Folder of the states of packs that were interrupted (`dbexp.train.resume`)."""
PARTIAL = ".partial"
"""Ends the name of an entry that is being made."""
DOOMED = ".doomed"
"""Ends the name of an entry that is being deleted."""


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
        os.replace(self.folder, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
        self.folder, self.finished = self.path, True


class Store:
    """A folder of entries, safe for several processes at once.

    Args:
        root: where entries live; None: `dbexp` in the user's cache directory.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or user_cache_path("dbexp")).expanduser().absolute()

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
        other for ever.

        Yields:
            The entry. If it is not `finished`, fill its `folder`, then call its `publish`.

        Raises:
            ConfigError: the root of the store is no folder.
        """
        path = self.path(stage, inputs)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise ConfigError(f"store={self.root}: is a file or lies inside one; give the path of a folder") from None
        except FileNotFoundError:  # a place that the system does not let anybody make folders in
            raise ConfigError(f"store={self.root}: no folder can be made there; give another path") from None
        with lock_of(path):
            if self._intact(path):
                _touch(path)
                log.debug("store: found %s %s", stage, path.name[:12])
                yield Entry(path, path, {"stage": stage, **inputs})
                return
            if path.exists():
                log.warning("store: %s is damaged and is made again", path)
                remove(path)
            work = self.partial(stage, inputs)
            work.mkdir(exist_ok=True)
            yield Entry(work, path, {"stage": stage, **inputs})

    def peek(self, stage: str, inputs: Mapping[str, Any]) -> Entry:
        """The entry as it is now, without its lock: for a process on whose behalf another one holds it."""
        path = self.path(stage, inputs)
        folder = path if self._intact(path) else self.partial(stage, inputs)
        return Entry(folder, path, {"stage": stage, **inputs})

    def file_hash(self, path: Path) -> str:
        """sha256 of a file, remembered by its place, size and time: hashing gigabytes of weights takes seconds."""
        real = path.resolve()
        state = real.stat()
        memo = key_of({"path": str(real), "bytes": state.st_size, "mtime_ns": state.st_mtime_ns})
        path = self.root / "hashes" / memo[:2] / memo
        try:
            return path.read_text()
        except OSError:
            digest = file_hash(real)
            write_atomic(path, digest)
            return digest

    def partial(self, stage: str, inputs: Mapping[str, Any]) -> Path:
        """Where an unfinished entry is being made (it need not exist)."""
        path = self.path(stage, inputs)
        return path.with_name(f"{path.name}{PARTIAL}")

    @staticmethod
    def _intact(path: Path) -> bool:
        """Whether every file of the manifest is there with its size (hashes are for `verify`: they cost a read)."""
        try:
            files = json.loads((path / MANIFEST).read_text())["files"]
            return all((path / name).stat().st_size == entry["bytes"] for name, entry in files.items())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @staticmethod
    def verify(path: Path) -> list[str]:
        """Names of the files of an entry whose bytes are no longer those of the manifest."""
        files = json.loads((path / MANIFEST).read_text())["files"]
        return [
            name
            for name, entry in files.items()
            if not (path / name).is_file() or file_hash(path / name) != entry["sha256"]
        ]


def _touch(path: Path) -> None:
    """Note that an entry was used now: the time of its manifest says when somebody last did."""
    with contextlib.suppress(OSError):  # a store that may only be read is as good as any other
        os.utime(path / MANIFEST)


def remove(path: Path) -> None:
    """Move an entry out of the way before deleting it, so that no reader finds half of it."""
    doomed = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{DOOMED}")
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
