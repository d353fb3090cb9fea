"""Commands of the form `name=value ...`, checked against a dataclass as `dbexp` checks its own.

For the small commands beside `dbexp`, which compose nothing and sweep nothing. Values are taken as they stand, so a
prompt needs no quotes but the shell's.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

import yaml
from omegaconf import OmegaConf

from dbexp.config import help
from dbexp.config.explain import version
from dbexp.config.fields import commas_allowed
from dbexp.config.typed import build
from dbexp.core.errors import Problems, did_you_mean, shown

T = TypeVar("T")


def parse(cls: type[T], words: Sequence[str], usage: str, nameless: str | None = None) -> T:
    """The settings that a command line gives.

    A list takes its name several times, one value each; or `[a, b]`; or, for a `fields.comma_list`, `a,b`. For a field
    that may be null, `null` is null.

    Args:
        cls: dataclass; its fields are strings, numbers, booleans, null or lists of these, explained by the strings
            under them.
        words: the command line without the program's name.
        usage: printed by --help above the fields.
        nameless: a list of paths that takes words without a name, and those that are paths with a sign in them.

    Raises:
        ConfigError: with every problem of names and types; each field that must be given and is not.
        SystemExit: help or the version was asked for and is printed.
    """
    if {"-h", "--help"} & set(words):
        print(_help_text(cls, usage))
        sys.exit(0)
    if "--version" in words:
        print(version())
        sys.exit(0)
    hints = get_type_hints(cls)
    lists = {field.name: field for field in dataclasses.fields(cls) if "list" in str(hints[field.name])}  # type: ignore[arg-type]  # T is a dataclass
    problems = Problems()
    values: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if nameless and name not in hints and not word.startswith("-") and (not sign or os.path.lexists(word)):
            values.setdefault(nameless, []).append(word)
        elif name not in hints or not sign:
            problems.require(False, _unknown(word, list(hints)))
        elif name in lists:
            try:
                values.setdefault(name, []).extend(_list_values(text, commas_allowed(lists[name])))
            except (yaml.YAMLError, RecursionError):
                problems.require(False, f"{shown(word)}: is no list; write {name}=[first, second], or {name}=... twice")
        else:
            problems.require(name not in values, f"{shown(word)}: {name} is given twice")
            values[name] = None if text == "null" and "None" in str(hints[name]) else text
    settings = build(cls, values, problems)
    problems.raise_if_any()
    assert settings is not None
    return settings


def _list_values(text: str, commas: bool) -> list[Any]:
    """The values of one word of a list field."""
    if text.startswith("["):
        values = yaml.safe_load(text)
        return values if isinstance(values, list) else [values]
    return [part.strip() for part in text.split(",")] if commas else [text]


def _unknown(word: str, names: Sequence[str]) -> str:
    """What to say of a word that names no field."""
    name, sign, _ = word.partition("=")
    if not sign:
        return f"{shown(word)}: write NAME=VALUE; a value with spaces needs quotes, NAME='a value'"
    return f"{shown(name)}: there is no such parameter{did_you_mean(name.lstrip('-'), names) or ';'} --help lists all"


def _help_text(cls: type[Any], usage: str) -> str:
    width = help.screen_width()
    intro = textwrap.fill("A list takes its name several times, or [a, b]; null stands for no value.", width)
    fields = help.class_lines(cls, "", OmegaConf.structured(cls), width)
    return "\n".join([usage, "PARAMETERS (name=value)\n", intro, *fields])
