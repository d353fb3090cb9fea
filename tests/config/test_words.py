"""Commands of the form name=value."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING

from dbexp.config.fields import bounded
from dbexp.config.words import parse
from dbexp.core.errors import ConfigError


@dataclass
class Wanted:
    """Some settings."""

    place: str = MISSING
    """Where."""
    words: list[str] = field(default_factory=list)
    """What."""
    numbers: list[float] = bounded([1.0], commas=True)
    """How much."""
    count: int | None = None
    """How many."""
    flag: bool = False
    """Whether."""
    name: str | None = "x"
    """Who."""


def test_values() -> None:
    given = parse(Wanted, ["place=here", "numbers=0.5,1", "numbers=2", "count=3", "flag=true", "name=null"], "")
    assert given == Wanted("here", [], [0.5, 1.0, 2.0], 3, True, None)


def test_defaults() -> None:
    assert parse(Wanted, ["place=here"], "") == Wanted("here")


@pytest.mark.parametrize(
    "text",
    [
        "a {token} dog, in the snow",
        "{token}",
        "a: b",
        "x=y",
        "12",
        "null",
        "yes",
        "# no",
        "'quoted'",
        "50 % $5",
        "${place}",
    ],
)
def test_texts_are_taken_as_they_stand(text: str) -> None:
    assert parse(Wanted, ["place=here", f"words={text}"], "").words == [text]


def test_a_list_in_brackets() -> None:
    assert parse(Wanted, ["place=here", "words=[a, 'b, {token}']", "words=c"], "").words == ["a", "b, {token}", "c"]


def test_every_mistake_in_one_message() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Wanted, ["cuont=1", "here", "count=x", "numbers=1,y", "--flag", "words=[a {b", "name=1", "name=2"], "")
    assert caught.value.problems == (
        "cuont: there is no such parameter; did you mean count? --help lists all",
        "here: write NAME=VALUE; a value with spaces needs quotes, NAME='a value'",
        "--flag: write NAME=VALUE; a value with spaces needs quotes, NAME='a value'",
        "words=[a {b: is no list; write words=[first, second], or words=... twice",
        "name=2: name is given twice",
        "place: has no value; give one, place=...",
        "numbers=y: must be a number",
        "count=x: must be a whole number, or null",
    )


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Wanted, ["--help"], "what it does\n")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("what it does\n")
    for line in ("place: str = ??? (must be given)", "numbers: list[float] = [1.0]", "count: int | null = null"):
        assert f"  {line}\n" in said
    assert "      How much.\n" in said
