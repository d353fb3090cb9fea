"""Values as the fields of a dataclass have them; whatever does not fit becomes a problem in words, all of them at once.

Types are those that settings have: whole numbers, numbers, truth values, texts, lists of these, dicts, and dataclasses
of these. A text that spells a value stands for it: a config file and a command line have nothing else.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from dbexp.core.errors import Problems, shown

T = TypeVar("T")

_TRUE, _FALSE = ("true", "yes", "on", "y", "1"), ("false", "no", "off", "n", "0")


class _Unfit(Exception):
    """Says what would be right in place of a value."""

    def __init__(self, value: object, right: str) -> None:
        self.value, self.right = value, right
        super().__init__(right)


def build(
    cls: type[T],
    values: object,
    problems: Problems,
    prefix: str = "",
    unknown: str = "",
    missing: Problems | None = None,
) -> T | None:
    """An instance of a dataclass from nested dicts.

    Args:
        cls: the dataclass; a field whose default is `???` must be given.
        values: by name of the field.
        problems: gets every one: a name that is none, a value of a wrong type, one that is missing.
        prefix: of the names in the messages.
        unknown: what a message about a name that is none ends with.
        missing: gets what is missing, in place of `problems`; the instance then has something else there.

    Returns:
        None if there was a problem.
    """
    if not isinstance(values, Mapping):
        name = prefix.removesuffix(".")
        problems.require(False, f"{name}={shown(values)}: is no group of parameters; give {name}.NAME=VALUE")
        return None
    before, hints = len(problems.messages), type_hints(cls)
    for name in values:
        known = name in hints
        problems.require(known, f"{prefix}{shown(name)}: there is no such parameter{unknown}")
    built: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # T is a dataclass
        path, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            built[field.name] = build(hint, values.get(field.name, {}), problems, f"{path}.", unknown, missing)
            continue
        value = values[field.name] if field.name in values else _default(field)
        if isinstance(value, str) and value == MISSING:
            (missing or problems).require(False, f"{path}: has no value; give one, {path}=...")
            built[field.name] = _STAND_INS.get(hint)
            continue
        try:
            built[field.name] = convert(value, hint)
        except _Unfit as unfit:
            problems.require(False, f"{path}={shown(unfit.value)}: {unfit.right}")
    return cls(**built) if len(problems.messages) == before else None


def convert(value: Any, hint: Any) -> Any:
    """A value of a type, or what it spells.

    Raises:
        _Unfit: it is neither.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        (inner,) = (arg for arg in args if arg is not type(None))
        try:
            return convert(value, inner)
        except _Unfit as unfit:
            raise _Unfit(unfit.value, f"{unfit.right}, or null") from None
    if origin is list:
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise _Unfit(value, "must be a list, [first,second]")
        return [convert(item, args[0]) for item in value]
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _Unfit(value, "must be a dictionary, {name: value}")
        return dict(value)
    return _SCALARS[hint](value)


def _whole(value: Any) -> int:
    if type(value) in (int, str):
        try:
            return int(value)
        except ValueError:  # also of thousands of digits
            pass
    raise _Unfit(value, "must be a whole number")


def _number(value: Any) -> float:
    if type(value) in (float, int, str):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # which bounds then refuse
        except ValueError:
            pass
    raise _Unfit(value, "must be a number")


def _truth(value: Any) -> bool:
    word = str(value).lower() if type(value) in (bool, int, str) else ""
    if word not in (*_TRUE, *_FALSE):
        raise _Unfit(value, "must be true or false")
    return word in _TRUE


def _text(value: Any) -> str:
    if value is None or isinstance(value, bytes | list | tuple | Mapping):
        raise _Unfit(value, "must be a text")
    try:
        return str(value)
    except ValueError:  # a number of thousands of digits
        raise _Unfit(value, "must be a text") from None


_SCALARS: Mapping[Any, Callable[[Any], Any]] = {int: _whole, float: _number, bool: _truth, str: _text}


_STAND_INS: Mapping[Any, Any] = {bool: False, str: "x"}


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def type_hints(cls: Any) -> dict[str, Any]:
    """Name -> type of the fields of a dataclass."""
    return _hints(cls)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)
