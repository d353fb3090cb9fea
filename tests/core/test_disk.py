"""Which setting moves what does not fit on a disk."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from dbexp.core import disk
from dbexp.core.store import Store


def full(path: Path | None = None, number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number), None if path is None else str(path))


def test_what_disks_say_and_what_they_do_not() -> None:
    assert disk.refuses(full()) and disk.refuses(full(number=errno.EROFS))
    assert not disk.refuses(full(number=errno.ENOENT)) and not disk.refuses(ValueError(errno.ENOSPC))


def test_the_setting_is_that_of_the_innermost_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "passing"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    Store(tmp_path / "run" / "store")
    places = {"run=FOLDER": tmp_path / "run"}
    for name, setting in (
        ("run/train/lora", "run=FOLDER"),
        ("run/store/train/ab", "store=FOLDER"),
        ("passing/tmpabc/file", "TMPDIR=FOLDER in the environment"),
        ("passing/dbexp-abc/file", "TMPDIR=FOLDER in the environment"),
        ("passing/of-the-user", "store=FOLDER or run=FOLDER"),
        ("hub/blobs/ab", "HF_HOME=FOLDER in the environment"),
        ("elsewhere", "store=FOLDER or run=FOLDER"),
    ):
        assert disk.message(full(tmp_path / name), places) == (
            f"{tmp_path / name}: No space left on device; free some space or choose another place with {setting}"
        )
    assert disk.message(full(number=errno.EROFS), places) == (
        f"{tmp_path / 'run'}: Read-only file system; choose another place with run=FOLDER"
    )
