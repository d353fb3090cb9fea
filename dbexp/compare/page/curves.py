"""The loss and learning rate of a run over its steps, thinned to what a plot can show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dbexp.runs import foreign
from dbexp.runs.folder import RunFolder

POINTS = 150
"""Most points of a curve."""
LOSSES = {"loss": "all", "loss_instance": "the subject's images", "loss_prior": "class images"}
"""Losses of a training step: key of the history -> whose they are."""
_NAMES = (*LOSSES, "lr")


@dataclass(frozen=True)
class Curve:
    """Values over steps; each is the mean over the steps up to its own since the one before."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Centred moving means over `width` values, over those that there are at the ends."""
    half = width // 2
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [float(f"{math.fsum(window) / len(window):.5g}") for window in windows]


def curves(folder: Path, points: int = POINTS) -> dict[str, Curve]:
    """Curves of a run by name; none where it has left no history, or one that cannot be read.

    Args:
        folder: of the run.
        points: most points of each.
    """
    try:
        lines = foreign.read_text(folder, RunFolder(folder).history).splitlines()
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: curve for name in _NAMES if (curve := _thin(rows, name, points)).steps}


def _thin(rows: list[dict[str, float]], name: str, most: int) -> Curve:
    points = [
        (int(row["step"]), float(row[name]))
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("step"), int) and _is_number(row.get(name))
    ]
    width = -(-len(points) // most) or 1
    bins = [points[start : start + width] for start in range(0, len(points), width)]
    means = (math.fsum(value for _, value in members) / len(members) for members in bins)
    return Curve(tuple(members[-1][0] for members in bins), tuple(float(f"{mean:.5g}") for mean in means))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
