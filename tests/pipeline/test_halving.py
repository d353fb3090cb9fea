"""Races by numbers alone: what runs are judged at is given, and nothing is trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from dbexp import compose
from dbexp.pipeline import halving
from dbexp.pipeline.halving import Judgement, Judging, Race
from dbexp.pipeline.plan import PlannedRun

LOSSES = {1e-4: 0.3, 2e-4: 0.1, 3e-4: 0.2, 4e-4: 0.4}
"""Rate -> loss at every rung."""


def run_race(rates: Sequence[float]) -> tuple[Race, list[list[int]]]:
    """A race of a run per rate, the better half at step 4 going on, and who reached each rung."""
    words = ["model=random", "train.steps=8", "objective=dino"]
    runs = [PlannedRun(n, (), (), compose([*words, f"train.lr={rate}"])) for n, rate in enumerate(rates)]
    reached: list[list[int]] = []

    def reach(at: Sequence[PlannedRun]) -> Mapping[int, tuple[Judgement, Path | None]]:
        reached.append([run.number for run in at])
        return {run.number: (Judgement(4, LOSSES[run.config.train.lr], passes=10), Path("lora")) for run in at}

    def decide(values: Mapping[int, Sequence[float]], place: int) -> Collection[int]:
        best_first = sorted(values, key=lambda number: values[number][-1])
        return best_first[len(values) // 2 :]

    return halving.race(runs, [4], Judging("loss"), decide, reach), reached


def test_a_setting_that_is_asked_for_twice_takes_one_place() -> None:
    """With two, the copies of the best would be the better half, and the second best would be stopped behind them."""
    race, reached = run_race([2e-4, 2e-4, 3e-4, 4e-4, 1e-4])
    assert reached == [[0, 2, 3, 4]]
    assert sorted(race.stops) == [3, 4] and "place 3 of 4" in race.stops[4].reason
    assert [entry["number"] for entry in race.plain()["runs"]] == [0, 1, 2, 3, 4]
    assert race.judgements[1] == race.judgements[0]
    assert race.passes["judging"] == 4 * 10, "a copy is trained and judged by its first"


def test_copies_stop_together() -> None:
    race, reached = run_race([4e-4, 2e-4, 4e-4, 3e-4, 1e-4])
    assert reached == [[0, 1, 3, 4]]
    assert sorted(race.stops) == [0, 2, 4]
    assert race.stops[2] == race.stops[0]


def test_the_passes_are_those_of_the_same_race_without_copies() -> None:
    assert run_race([2e-4, 2e-4, 1e-4])[0].passes == run_race([2e-4, 1e-4])[0].passes
