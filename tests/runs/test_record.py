"""The runs of a sweep, read from their folders; who is best."""

from __future__ import annotations

import math

import pytest

from dbexp.runs.record import ranked
from tests.compare.sweeps import unwritten


@pytest.mark.parametrize(
    ("objective", "order"), [("dino", [2, 0, 3, 1]), ("pres", [0, 3, 2, 1]), ("div", [0, 1, 2, 3])]
)
def test_ranked(objective: str, order: list[int]) -> None:
    runs = [
        unwritten(0, dino=0.5, pres=0.1),
        unwritten(1, dino=math.nan, pres=math.nan),
        unwritten(2, dino=0.7, pres=0.3),
        unwritten(3, dino=0.5, pres=0.2),
        unwritten(4, error="it failed"),
    ]
    assert [run.number for run in ranked(runs, objective)] == order
