"""What differs between runs, as parameters with their values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dbexp.compare.factors import factors
from dbexp.runs.record import Run


def runs(*configs: dict[str, Any], overrides: tuple[str, ...] = ()) -> list[Run]:
    return [
        Run(Path(str(number)), "name", "failed", overrides, config, None, "it failed")
        for number, config in enumerate(configs)
    ]


def test_numbers_ascend_and_words_stay_in_order() -> None:
    swept = factors(runs({"a": 16, "b": "z"}, {"a": 4, "b": "z"}, {"a": 4, "b": "y"}))
    assert [(factor.name, factor.levels, factor.is_ordered) for factor in swept] == [
        ("a", ("4", "16"), True),
        ("b", ("z", "y"), False),
    ]


def test_neighbours_among_numbers_and_everything_with_the_first_word() -> None:
    grid = [{"a": a, "b": b} for a in (1, 2, 3) for b in ("x", "y", "z")]
    numbers, words = factors(runs(*grid))
    assert numbers.steps() == [("1", "2"), ("2", "3")]
    assert words.steps() == [("x", "y"), ("x", "z")]


def test_what_moves_together_is_one_factor_named_as_on_the_command_line() -> None:
    first = {"lr_schedule.end": 0.1, "lr_schedule.name": "constant", "seed": 1}
    second = {"lr_schedule.end": 0.2, "lr_schedule.name": "polynomial", "seed": 1}
    (only,) = factors(runs(first, second, overrides=("lr_schedule.name=x",)))
    assert (only.name, only.title, only.together) == ("lr_schedule.name", "lr_schedule", ("lr_schedule.end",))


def test_seeds_come_last_and_speak_for_nobody() -> None:
    swept = factors(runs({"seed": 1, "a": 1}, {"seed": 2, "a": 2}))
    assert [(factor.name, factor.together) for factor in swept] == [("a", ("seed",))]
    swept = factors(runs(*({"seed": seed, "a": a} for seed in (1, 2) for a in (1, 2))))
    assert [factor.name for factor in swept] == ["a", "seed"] and swept[1].is_seed
