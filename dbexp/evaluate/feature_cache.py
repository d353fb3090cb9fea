"""Features by content: a picture is embedded once, whatever it is called and however often it is evaluated."""

from __future__ import annotations

import hashlib
import io
import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dbexp.core.errors import first_line
from dbexp.core.files import sweep_up, write_atomic
from dbexp.core.hashing import with_hash, without_hash

log = logging.getLogger(__name__)


class FeatureCache(Protocol):
    """Arrays by key. A cache may forget; what it returns must be what was put."""

    def get(self, key: str) -> NDArray[Any] | None:
        """The array of a key, or null if it is not there."""
        ...

    def put(self, key: str, array: NDArray[Any]) -> None:
        """Remember an array."""
        ...

    def put_all(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Remember arrays that were computed in one batch: all of them or, if the process dies, none."""
        ...


def feature_key(backbone_id: str, transform: str, *image_sha256: str) -> str:
    """Key of the features that a backbone computes from one picture, or from an ordered list of them."""
    return hashlib.sha256("\n".join((backbone_id, transform, *image_sha256)).encode()).hexdigest()


class DiskCache:
    """One .npy file per key in two-level folders; safe for several writers: a file appears whole or not at all.

    What belongs together is first written to one file, which the next process finishes with if this one dies: rows of a
    batch depend in their last bits on the size of the batch, so that a part of it, computed again, would differ.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for path in sorted((root / "pending").glob("*.npz")):
            try:
                with np.load(path, allow_pickle=False) as pending:
                    for key in pending.files:
                        self.put(key, pending[key])
            except FileNotFoundError:
                continue  # another process was at it
            except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
                log.warning("%s is damaged (%s): computing these features again", path, first_line(error))
            path.unlink(missing_ok=True)

    def path(self, key: str) -> Path:
        """Where the array of a key is kept."""
        return self.root / key[:2] / f"{key[2:]}.npy"

    def get(self, key: str) -> NDArray[Any] | None:
        """The array of a key, or null if it is not there or damaged (then it is computed anew)."""
        path = self.path(key)
        try:
            return _checked(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s is damaged (%s): computing these features again", path, first_line(error))
            return None

    def put(self, key: str, array: NDArray[Any]) -> None:
        """Remember an array.

        Raises:
            OSError: the disk is full or not writable.
        """
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        _write(self.path(key), with_hash(buffer.getvalue()))  # behind the array, where other readers do not look

    def put_all(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Remember arrays that were computed in one batch.

        Raises:
            OSError: the disk is full or not writable.
        """
        if not arrays:
            return
        digest = hashlib.sha256("\n".join(sorted(arrays)).encode()).hexdigest()
        pending = self.root / "pending" / f"{digest}.npz"
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # stubs take every name for an option
        _write(pending, buffer.getvalue())
        for key, array in arrays.items():
            self.put(key, array)
        pending.unlink(missing_ok=True)


def _checked(data: bytes) -> NDArray[Any]:
    """The array of a file's bytes.

    Raises:
        ValueError: they are not those that were saved.
    """
    content = without_hash(data)
    stream = io.BytesIO(content)
    try:
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
    except Exception as error:  # a header that does not parse raises what Python's own parsers do
        raise ValueError(first_line(error)) from error
    if stream.tell() != len(content):
        raise ValueError("its bytes are not those that were saved")
    return array


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Not durable: a file that a loss of power damages is computed again."""
    sweep_up(path.parent, path.name)
    write_atomic(path, data, durable=False)
