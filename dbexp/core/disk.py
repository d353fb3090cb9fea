"""A disk that is full or may not be written to: where that is, and what to do about it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from dbexp.core import store

_FULL = (errno.ENOSPC, errno.EDQUOT)
# what else disks say; anything beyond it is a fault of ours
_DISK = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM)
# how the names of passing folders begin: tempfile's own, and ours
_PASSING = ("tmp", "dbexp-")


def refuses(error: BaseException) -> bool:
    """Whether an exception is what a full or read-only disk says."""
    return isinstance(error, OSError) and error.errno in _DISK


def message(error: OSError, places: Mapping[str, Path]) -> str:
    """`FILE: what is wrong; choose another place with SETTING`.

    Args:
        error: of the operating system.
        places: setting -> folder that it names, beside the stores that this process has opened. An error that does not
            say where it happened is told of the last of them.
    """
    folders = dict.fromkeys(sorted(store.roots), "store=FOLDER")
    folders |= {path.absolute(): setting for setting, path in places.items()}
    file = error.filename or next(reversed(folders), None)
    if file is None:
        return f"{error.strerror}; free some space"
    space = "free some space or " if error.errno in _FULL else ""
    where = _by_setting(Path(str(file)).absolute(), folders)
    return f"{file}: {error.strerror}; {space}choose another place{where}"


def _by_setting(path: Path, folders: Mapping[Path, str]) -> str:
    """` with SETTING`, of the innermost folder that a file is in; where it is in none, with any of them."""
    around = [folder for folder in folders if path.is_relative_to(folder)]
    passing, hub = Path(tempfile.gettempdir()), Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    if around:
        settings = [folders[max(around, key=lambda folder: len(folder.parts))]]
    elif path.is_relative_to(passing) and path.relative_to(passing).as_posix().startswith(_PASSING):
        settings = ["TMPDIR=FOLDER in the environment"]
    elif path.is_relative_to(hub):
        settings = ["HF_HOME=FOLDER in the environment"]
    else:
        settings = [*dict.fromkeys(folders.values())]
    return f" with {' or '.join(settings)}" if settings else ""
