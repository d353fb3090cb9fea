"""halving.json: how the runs of a sweep raced, where some were stopped early."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbexp.core.files import write_atomic

RACE = "halving.json"
"""In the folder of a sweep, a list with an object for each batch of its runs: rungs (optimizer steps), column (what
runs were judged by), runs (number, judgements, stopped: a step or null) and passes (what it cost)."""


def write(race: Mapping[str, Any], folder: Path) -> None:
    """Add a race to those of a sweep's folder; one of the same runs takes the place of the one before."""
    races = {_numbers(each): each for each in [*read(folder), race]}
    write_atomic(folder / RACE, json.dumps([races[numbers] for numbers in sorted(races)], indent=1))


def read(folder: Path) -> list[dict[str, Any]]:
    """The races of a sweep's folder; none where there are none, or where the file is not what `write` writes."""
    try:
        races = json.loads((folder / RACE).read_text(encoding="utf-8"))
        return [race for race in races if _numbers(race)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _numbers(race: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(run["number"]) for run in race["runs"])
