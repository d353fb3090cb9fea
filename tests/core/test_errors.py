"""What messages share: first lines, likely meanings, lists, counts and sizes."""

from __future__ import annotations

import pickle

import pytest

from dbexp.core.errors import ConfigError, byte_size, count, did_you_mean, first_line, listed


def test_problems_stay_apart_on_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["first", "second"])))
    assert error.problems == ("first", "second")


@pytest.mark.parametrize(
    ("error", "typed", "line"),
    [
        (ValueError("\n first\nsecond"), False, "first"),
        (ValueError("\n first\nsecond"), True, "ValueError: first"),
        (ValueError(), False, "ValueError"),
        (ValueError(" "), True, "ValueError"),
        ("first\nsecond", False, "first"),
        ("", False, "no reason is on record"),
        (None, False, "no reason is on record"),
    ],
)
def test_first_line(error: BaseException | str | None, typed: bool, line: str) -> None:
    assert first_line(error, typed=typed) == line


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lora.rnak", "; did you mean lora.rank?"),
        ("rank", "; did you mean lora.rank?"),
        ("dog", "; did you mean storybook/dog?"),
        ("lora.steps", "; did you mean prior.steps or train.steps?"),
        ("something", ""),
    ],
)
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["train.steps", "lora.rank", "prior.steps", "storybook/dog"]) == hint


@pytest.mark.parametrize(
    ("words", "most", "text"),
    [
        ([], None, ""),
        (["a"], None, "a"),
        (["a", "b"], 2, "a and b"),
        (["a", "b", "c"], None, "a, b and c"),
        (["a", "b", "c"], 2, "a, b and 1 more"),
    ],
)
def test_listed(words: list[str], most: int | None, text: str) -> None:
    assert listed(words, most) == text


def test_count() -> None:
    assert [count(1, "run"), count(2000, "run"), count(0, "entry", "entries")] == ["1 run", "2,000 runs", "0 entries"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (5000, "5.0 kB"), (1_500_000_000, "1.5 GB"), (10**16, "10000.0 TB")],
)
def test_byte_size(number: int, text: str) -> None:
    assert byte_size(number) == text
