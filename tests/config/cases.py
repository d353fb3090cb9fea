"""Values that nobody should give, made from the types and rules of the fields of settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dbexp.config.fields import Choice, Rule, Text, rule_of
from dbexp.config.typed import type_hints

HUGE = 10**400


@dataclass(frozen=True)
class Case:
    """One value of one field, dotted; `refused`: it can never be right, otherwise a rule may let it pass."""

    field: str
    value: Any
    refused: bool

    @property
    def id(self) -> str:
        """Short, for the name of a test."""
        return f"{self.field}={self.value!a:.30}"


def of_fields(cls: type, prefix: str = "") -> Iterator[Case]:
    """Every field of a dataclass, and of those in it, with every bad value of its kind."""
    for field in dataclasses.fields(cls):
        hint, path = type_hints(cls)[field.name], f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from (Case(path, value, True) for value in (None, ["a"], "a", 5))
            yield from of_fields(hint, f"{path}.")
        else:
            yield from _of_field(path, str(hint), rule_of(field))


def _of_field(path: str, hint: str, rule: Rule) -> Iterator[Case]:
    whole, number = "int" in hint and "Any" not in hint, "float" in hint
    many = "list" in hint
    if hint not in ("typing.Any", "Any"):
        yield Case(path, None, "None" not in hint)
        yield Case(path, {"a": 1}, "dict" not in hint)
        yield Case(path, [["a"]] if many else ["a"], True)
        yield Case(path, [None], True)

    def wrap(value: Any) -> Any:
        return [value] if many else value

    if "dict" in hint:
        dicts: list[Any] = ["a", 5, [], {"a": HUGE}, {"a": {"b": float("nan")}}]
        yield from (Case(path, value, True) for value in dicts)
    elif whole or number:
        words = ("x", "", "${nowhere}", True, float("nan"), float("inf"), "nan", 1e20, -1e20, 10**20, -(10**20))
        yield from (Case(path, wrap(value), True) for value in (*words, HUGE, -HUGE, "9" * 5000))
        yield from (Case(path, wrap(value), False) for value in (0, -1, 1.5))
    elif "bool" in hint:
        yield from (Case(path, value, True) for value in (2, -1, 1.5, "maybe", "", "${nowhere}", HUGE))
    else:
        wrong: list[object] = ["a\0b", "\udce4", "x" * 11_000, "${nowhere}"]
        if isinstance(rule, Choice):
            wrong += ["", "nonsense", 5, "a\nb"]
        elif isinstance(rule, Text):
            wrong += [] if rule.empty else ["", " "]
            wrong += [] if rule.lines else ["a\nb", "\x1b[2J"]
            wrong += ["x" * 300, f"{'x' * 300}/y", "~nobody-has-this-name/x", "/".join(["x" * 100] * 50)] * rule.path
        yield from (Case(path, wrap(value), True) for value in wrong)
        yield from (Case(path, wrap(value), False) for value in ("", 1e20, "a,b", "[x", "{x", "null", "..", "/", "-x"))
