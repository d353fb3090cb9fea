"""halving.json: how the runs of a sweep raced, where some were stopped early."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dbexp.core.files import write_atomic

RACE = "halving.json"
"""In the folder of a sweep, a list with an object for each batch of its runs: rungs (optimizer steps), column (what
runs were judged by), runs (number, judgements, stopped: a step or null) and passes (what it cost, see `cost`)."""

_PASSES = ("training", "judging", "drawing", "training_all", "drawing_all")


def write(race: Mapping[str, Any], folder: Path) -> None:
    """Add a race to those of a sweep's folder; one of the same runs takes the place of the one before."""
    races = {_numbers(each): each for each in [*read(folder), race]}
    write_atomic(folder / RACE, json.dumps([races[numbers] for numbers in sorted(races)], indent=1))


def read(folder: Path) -> list[dict[str, Any]]:
    """The races of a sweep's folder; none where there are none, or where the file is not what `write` writes."""
    try:
        races = json.loads((folder / RACE).read_text(encoding="utf-8"))
        return [race for race in races if _numbers(race) and all(int(race["passes"][name]) >= 0 for name in _PASSES)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def cost(passes: Sequence[Mapping[str, int]]) -> str:
    """What races took, all of it and by its parts, in words; empty without a race.

    Args:
        passes: of each race, rows through the denoiser, forward: training, judging, drawing (of those that went on),
            training_all and drawing_all (without a race).
    """
    of = {name: sum(int(each[name]) for each in passes) for name in _PASSES}
    training, whole = of["training_all"], of["training_all"] + of["drawing_all"]
    if not training:
        return ""
    parts = [f"{verb} {100 * of[verb] / whole:.0f} %" for verb in ("training", "judging", "drawing")]
    took = of["training"] + of["judging"]
    return (
        f"of the passes through the denoiser that all runs take to their end, with the images that their LoRAs draw "
        f"there, the race took {100 * (took + of['drawing']) / whole:.0f} % ({', '.join(parts)}); training and judging "
        f"took {100 * took / training:.0f} % of training all"
    )


def _numbers(race: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(run["number"]) for run in race["runs"])
