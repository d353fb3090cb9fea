"""Prompts in which {token} and {class} stand for the subject's."""

from __future__ import annotations

import pytest

from dbexp.config.schema import DatasetConfig
from dbexp.config.template import fill, problem

DOG = DatasetConfig(name="rex", class_noun="dog")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a {token} {class} on a {class}", "a sks dog on a dog"),
        ("a {{token}} of {token}", "a {token} of sks"),
        ("nothing", "nothing"),
    ],
)
def test_fill(template: str, text: str) -> None:
    assert problem(template) is None
    assert fill(template, DOG) == text


@pytest.mark.parametrize(
    "field", ["name", "0", "", "token.real", "token[0]", "token!r", "token:>9", "class:{token}", " token"]
)
def test_only_token_and_class_may_stand_in_braces(field: str) -> None:
    assert problem(f"a {{{field}}} b") == f"has {{{field}}}: only {{token}} and {{class}} may stand in braces"


@pytest.mark.parametrize("template", ["{token", "token}", "a } b", "{", "{token}}"])
def test_braces_come_in_pairs(template: str) -> None:
    said = problem(template)
    assert said and said.startswith("has a brace too many or too few (") and said.endswith("is doubled, {{ or }}")
