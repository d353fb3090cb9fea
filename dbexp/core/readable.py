"""JSON for people to look into: an entry a line down to some depth, and below it all of an entry in its line.

A table of hundreds of pictures is easier to read with a line for each than with twenty, and is written many times
faster: Python's JSON library falls back to slow code when it is asked to indent.
"""

from __future__ import annotations

import json
from typing import Any

_DEPTH = 3


def readable(value: Any, depth: int = _DEPTH, indent: int = 0) -> str:
    """A value as JSON.

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
