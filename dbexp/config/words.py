"""Commands of the form `name=value ...`, checked against a dataclass as `dbexp` checks its own.

For the small commands beside `dbexp`, which compose nothing and sweep nothing. Values are taken as they stand, so a
prompt needs no quotes but the shell's.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dbexp.config import help
from dbexp.config.fields import commas_allowed
from dbexp.core.errors import Problems, did_you_mean, first_line

T = TypeVar("T")


def parse(cls: type[T], words: Sequence[str], usage: str) -> T:
    """The settings that a command line gives.

    A list takes its name several times, one value each; or `[a, b]`; or, for a `fields.comma_list`, `a,b`. For a field
    that may be null, `null` is null.

    Args:
        cls: dataclass; its fields are strings, numbers, booleans, null or lists of these, explained by the strings
            under them.
        words: the command line without the program's name.
        usage: printed by --help above the fields.

    Raises:
        ConfigError: with every problem of names and types; each field that must be given and is not.
        SystemExit: help was asked for and is printed.
    """
    if {"-h", "--help"} & set(words):
        print(_help_text(cls, usage))
        sys.exit(0)
    hints = get_type_hints(cls)
    lists = {field.name: field for field in dataclasses.fields(cls) if "list" in str(hints[field.name])}  # type: ignore[arg-type]  # T is a dataclass
    problems = Problems()
    values: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if name not in hints or not sign:
            problems.require(False, _unknown(word, list(hints)))
        elif name in lists:
            try:
                values.setdefault(name, []).extend(_list_values(text, commas_allowed(lists[name])))
            except yaml.YAMLError:
                problems.require(False, f"{word}: is no list; write {name}=[first, second], or {name}=... twice")
        else:
            problems.require(name not in values, f"{word}: {name} is given twice")
            values[name] = None if text == "null" and "None" in str(hints[name]) else _literal(text)
    settings = OmegaConf.structured(cls)
    for name, value in values.items():
        try:
            OmegaConf.update(settings, name, value)
        except OmegaConfBaseException as error:
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            problems.require(False, f"{name}={text}: {first_line(error)}")
    for name in sorted(set(OmegaConf.missing_keys(settings)) - set(values)):
        problems.require(False, f"{name}: has no value; give one, {name}=...")
    problems.raise_if_any()
    return OmegaConf.to_object(settings)  # type: ignore[return-value]  # an instance of cls


def _list_values(text: str, commas: bool) -> list[Any]:
    """The values of one word of a list field."""
    if text.startswith("["):
        values = yaml.safe_load(text)
        return values if isinstance(values, list) else [values]
    return [part.strip() for part in text.split(",")] if commas else [_literal(text)]


def _literal(text: str) -> str:
    """A text in which OmegaConf sees no interpolation."""
    return text.replace("${", "\\${")


def _unknown(word: str, names: Sequence[str]) -> str:
    """What to say of a word that names no field."""
    name, sign, _ = word.partition("=")
    if not sign:
        return f"{word}: write NAME=VALUE; a value with spaces needs quotes, NAME='a value'"
    return f"{name}: there is no such parameter{did_you_mean(name.lstrip('-'), names) or ';'} --help lists all"


def _help_text(cls: type[Any], usage: str) -> str:
    width = help.screen_width()
    intro = textwrap.fill("A list takes its name several times, or [a, b]; null stands for no value.", width)
    fields = help.class_lines(cls, "", OmegaConf.structured(cls), width)
    return "\n".join([usage, "PARAMETERS (name=value)\n", intro, *fields])
