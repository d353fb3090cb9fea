"""Runs gathered over their seeds, and the runs that no other beats."""

from __future__ import annotations

import math

import pytest

from dbexp.compare.ranking import by_mean, front, over_seeds
from tests.compare.sweeps import unwritten


def test_over_seeds() -> None:
    runs = [
        unwritten(0, "lora.rank=2", "seed=1", dino=0.5, pres=0.1),
        unwritten(1, "lora.rank=2", "seed=2", dino=0.7, pres=math.nan),
        unwritten(2, "lora.rank=2", "seed=3", error="it failed"),
        unwritten(3, "lora.rank=4", "seed=1", dino=0.9),
    ]
    two, four = over_seeds(runs)
    assert [member.number for member in two.runs] == [0, 1] and [member.number for member in four.runs] == [3]
    assert two.mean["dino"] == pytest.approx(0.6)
    assert two.deviation["dino"] == pytest.approx(math.sqrt(0.02))  # sample standard deviation: (0.1² + 0.1²) / 1
    assert math.isnan(two.mean["pres"]), "a mean over some of the seeds would not say so"
    assert four.mean["dino"] == 0.9 and math.isnan(four.deviation["dino"])
    assert by_mean([two, four], "dino") == [four, two]
    assert by_mean([two, four], "pres") == [two, four], "without a mean they stay in their order"


def test_the_front_has_who_is_not_beaten() -> None:
    runs = [unwritten(0, dino=0.3, clip_t=0.3), unwritten(1, dino=0.5, clip_t=0.25), unwritten(2, dino=0.4, clip_t=0.2)]
    assert [run.number for run in front(runs, ("clip_t", "dino"))] == [0, 1]


def test_on_the_front_lower_is_better_where_the_column_says_so() -> None:
    finished = [unwritten(0, dino=0.5, pres=0.2), unwritten(1, dino=0.5, pres=0.1)]
    assert [run.number for run in front(finished, ("dino", "pres"))] == [1]
    assert front([unwritten(2, dino=0.9), unwritten(3, error="it failed")], ("dino", "pres")) == []
