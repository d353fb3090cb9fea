"""What is to be known of one field alone, declared beside it: its rule, which the check asks and `--help` prints, and
the value at which it stays out of the store's keys.

rank: int = bounded(16, at_least=1)
optimizer: str = choice("adamw", ("adamw", "prodigy"))
shift: float | None = newer(bounded(None, above=0), neutral=None)
"""

from __future__ import annotations

import dataclasses
import math
import operator
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from dbexp.core.errors import shown

_TESTS = {
    "at_least": (operator.ge, "at least"),
    "above": (operator.gt, "greater than"),
    "at_most": (operator.le, "at most"),
    "below": (operator.lt, "less than"),
}


@dataclass(frozen=True)
class Bounds:
    """A finite number between bounds; values of other types pass."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    most: float | None = None
    """A size, of either sign, that no sensible value has; a slip of the keyboard does."""

    def allows(self, value: Any) -> bool:
        """Whether a value, which is not null, may stand in the field."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return abs(value) < math.inf and self._sensible(value) and self._within(value)

    def demand(self, value: Any) -> str:
        """What would be right in place of a value, to end a message with: `must be at least 1`."""
        if self.most is not None and self.most < abs(value) < math.inf and self._within(value):
            return f"must be at most {self.most:,.10g}" if value > 0 else f"must be at least {-self.most:,.10g}"
        return f"must be {self._text() or 'a finite number'}"

    def sentence(self) -> str:
        """The same for `--help`: `At least 1.`; empty where every number will do."""
        text = self._text()
        return text and f"{text[0].upper()}{text[1:]}."

    def _within(self, value: float) -> bool:
        return all(_TESTS[name][0](value, limit) for name, limit in self._limits())

    def _sensible(self, value: float) -> bool:
        return self.most is None or abs(value) <= self.most

    def _limits(self) -> Iterator[tuple[str, float]]:
        return ((name, limit) for name in _TESTS if (limit := getattr(self, name)) is not None)

    def _text(self) -> str:
        return " and ".join(f"{_TESTS[name][1]} {limit:g}" for name, limit in self._limits())


@dataclass(frozen=True)
class Choice:
    """One of some names; its methods are those of `Bounds`."""

    names: Mapping[str, str]
    """Name -> meaning, empty where the name says it."""
    or_null: bool

    def allows(self, value: Any) -> bool:
        return value in self.names

    def demand(self, value: Any) -> str:
        return f"choose one of {', '.join(self.names)}{', or null' if self.or_null else ''}"

    def sentence(self) -> str:
        if any(self.names.values()):
            return "; ".join(f"{name}: {meaning}" if meaning else name for name, meaning in self.names.items()) + "."
        return f"One of {', '.join(self.names)}."


_NAME_BYTES, _PATH_BYTES = 255, 3000
"""Longest name of a file that disks take, and longest path that leaves room for what lies below, of 4096 bytes."""


@dataclass(frozen=True)
class Text:
    """A text that files, tables and terminals can hold; its methods are those of `Bounds`."""

    most: int = 1000
    """Characters."""
    empty: bool = True
    """Whether it may be empty."""
    lines: bool = False
    """Whether it may hold line breaks."""
    path: bool = False
    """Whether it names a file, or may."""
    without: str = ""
    """Characters that it must not have."""

    def allows(self, value: Any) -> bool:
        return not isinstance(value, str) or self._fault(value) is None

    def demand(self, value: Any) -> str:
        return self._fault(value) or ""

    def sentence(self) -> str:
        return ""

    def _fault(self, text: str) -> str | None:
        if not text.strip() and not self.empty:
            return "must not be empty"
        if len(text) > self.most:
            return f"must have at most {self.most:,} characters"
        if "\0" in text:
            return "has a NUL character, which no text may have"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return "is no text in UTF-8; rename what it names"
        if not self.lines and any(unicodedata.category(character) in _BREAKS for character in text):
            return "must be one line without control characters"
        if any(character in text for character in self.without):
            return f"must have none of the characters {' '.join(self.without)}"
        return _path_fault(text) if self.path else None


_BREAKS = ("Cc", "Zl", "Zp")  # control characters, separators of lines and of paragraphs


def _path_fault(text: str) -> str | None:
    """Why a path cannot be one."""
    if len(text.encode()) > _PATH_BYTES:
        return f"must be a path of at most {_PATH_BYTES:,} bytes"
    if any(len(name.encode()) > _NAME_BYTES for name in text.split("/")):
        return f"has a name of more than {_NAME_BYTES} bytes, which no disk takes"
    if text.startswith("~"):
        try:
            Path(text).expanduser()
        except RuntimeError:
            return f"there is no user {text[1:].partition('/')[0]}"
    return None


Rule = Bounds | Choice | Text
_ANY = Bounds()
_ANY_TEXT = Text()
PATH = Text(most=_PATH_BYTES, empty=False, path=True)
"""Of a file, or what may be one."""
NAME = Text(most=200, empty=False, path=True)
"""Of a model or a subject, which may become that of a file."""
PROMPT = Text(most=10_000, empty=False, lines=True)


def bounded(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    most: float | None = None,
    commas: bool = False,
) -> Any:
    """A field of a dataclass that holds a number, or a list of numbers, inside bounds.

    Args:
        default: of the field.
        at_least, above, at_most, below: bounds; None: none.
        most: see `Bounds`.
        commas: see `comma_list`.
    """
    return _field(default, Bounds(at_least, above, at_most, below, most), commas)


def text(default: Any, rule: Text, *, commas: bool = False) -> Any:
    """A field of a dataclass that holds a text, or a list of texts.

    Args:
        default: of the field.
        rule: what it may be.
        commas: see `comma_list`.
    """
    return _field(default, rule, commas)


def choice(default: Any, names: Sequence[str] | Mapping[str, str], *, commas: bool = False) -> Any:
    """A field of a dataclass that holds one of some names, or a list of them.

    Args:
        default: of the field; None: null is allowed too.
        names: in the order shown; a mapping gives their meanings.
        commas: see `comma_list`.
    """
    meanings = names if isinstance(names, Mapping) else dict.fromkeys(names, "")
    return _field(default, Choice(meanings, or_null=default is None), commas)


def comma_list(default: Any) -> Any:
    """A list field whose values a command line may also give in one word, with commas between them."""
    return _field(default, None, commas=True)


def newer(spec: Any, neutral: Any) -> Any:
    """A field that came after the store's keys: at its neutral value it is no part of them, so that what was computed
    before it came is still found.

    Args:
        spec: the field as it would be otherwise: its default, or what `bounded`, `choice`, `comma_list` gave.
        neutral: the value at which everything is as before.
    """
    field = spec if isinstance(spec, dataclasses.Field) else dataclasses.field(default=spec)
    field.metadata = MappingProxyType({**field.metadata, "neutral": neutral})
    return field


def keyed(settings: Any) -> dict[str, Any]:
    """Settings as they enter a key of the store: without those that are newer than the keys and neutral.

    Args:
        settings: an instance of a dataclass, which may hold others.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if "neutral" not in field.metadata or value != field.metadata["neutral"]:
            values[field.name] = keyed(value) if dataclasses.is_dataclass(value) else deepcopy(value)
    return values


def _field(default: Any, rule: Rule | None, commas: bool) -> Any:
    metadata = {"commas": commas} if rule is None else {"rule": rule, "commas": commas}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def rule_of(field: dataclasses.Field[Any]) -> Rule:
    """What a value of a field has to be."""
    rule: Rule = field.metadata.get("rule", _ANY_TEXT if "str" in str(field.type) else _ANY)
    return rule


def commas_allowed(field: dataclasses.Field[Any]) -> bool:
    """See `comma_list`."""
    return bool(field.metadata.get("commas"))


def problems(settings: Any, prefix: str = "") -> list[str]:
    """A message for each value that the rule of its field forbids; a list is held to it value by value.

    Args:
        settings: an instance of a dataclass, which may hold others.
        prefix: of the names in the messages.
    """
    messages: list[str] = []
    for field in dataclasses.fields(settings):
        path, value, rule = f"{prefix}{field.name}", getattr(settings, field.name), rule_of(field)
        if dataclasses.is_dataclass(value):
            messages += problems(value, f"{path}.")
            continue
        values = value if isinstance(value, list) else [value]
        wrong = [item for item in values if item is not None and not rule.allows(item)]
        messages += [f"{path}={shown(item)}: {rule.demand(item)}" for item in wrong]
    return messages
