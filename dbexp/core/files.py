"""Files: written whole or not at all, linked, found in the package, and JSON that people can read."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp"
"""Ends the name of a file that is being written; one that a killed process left is swept up before publishing."""
PREFIX = "package:"
"""`package:storybook/weights` is the folder dbexp/storybook/weights, wherever dbexp is installed: the same words in a
config, and in its hash, on every machine."""
_DEPTH = 3


def write_atomic(path: Path, data: str | bytes, *, durable: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, whatever happens meanwhile.

    Args:
        path: the file; folders that it lacks are made.
        data: its content.
        durable: wait until the disk has it, for milliseconds, so that it outlives a loss of power too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Make `target` a hard link to `source`, or a copy where links are impossible (another disk)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def link_tree(source: Path, target: Path, skip: str = "") -> None:
    """Hard-link every file of a folder into another, except those whose name is `skip`."""
    for path in sorted(source.rglob("*")):
        if path.is_file() and path.name != skip:
            link(path, target / path.relative_to(source))


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
