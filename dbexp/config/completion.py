"""What Tab offers after `dbexp`: groups, their options however deep they lie, parameters, and the values that a
parameter takes. Hydra completes no option in a folder of its group; what is neither of these is left to it:
its launchers and switches, and the names of files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from dbexp.config.fields import Choice, rule_of
from dbexp.config.groups import conf_dir, options
from dbexp.config.overrides import switch_values
from dbexp.config.schema import Config

_SEPARATORS = {"bash": " ", "zsh": " ", "fish": "\n"}


def answer(words: Sequence[str], known: Mapping[str, Sequence[str]]) -> str | None:
    """What a shell that asks is told; None where it asks nothing, or where Hydra is to answer.

    Args:
        words: behind the command's name; a shell asks by `-sc query=SHELL`, and gives the line in `COMP_LINE`.
        known: parameter -> values, of those whose field does not list them.
    """
    if not {"-sc", "--shell-completion"} & set(words):
        return None
    shells = [word.removeprefix("query=") for word in words if word.startswith("query=")]
    if len(shells) != 1 or shells[0] not in _SEPARATORS:
        return None
    line = os.environ.get("COMP_LINE", "")
    found = completions(line, known)
    return _SEPARATORS[shells[0]].join(found) if found else None


def completions(line: str, known: Mapping[str, Sequence[str]]) -> list[str]:
    """What the last word of a command line may become; empty where nothing of ours fits.

    Args:
        line: up to the cursor, with the command's name. An option folder that it names (--config-dir) is read too.
        known: as for `answer`.
    """
    typed = line.split(" ")
    word = typed[-1]
    groups = _nested(options([conf_dir(), *map(Path, switch_values(typed[1:], "--config-dir", "-cd"))]))
    name, sign, value = word.partition("=")
    if not sign:
        return _names(name, groups)
    before, comma, last = value.rpartition(",")
    bare = name.lstrip("+~")
    values = known[bare] if bare in known else _values(bare, groups)
    return [f"{name}={before}{comma}{each}" for each in values if each.startswith(last)]


def _names(start: str, groups: Iterable[str]) -> list[str]:
    """Groups and parameters, a level at a time as in a file system: `lora=`, `lora.`, then `lora.rank=`."""
    if start.startswith("hydra"):
        return []
    found = {name for name in ("hydra.", "hydra/") if name.startswith(start)}
    for whole, level in (*((group, "/") for group in groups), *((name, ".") for name in fields())):
        if whole.startswith(start):
            head, below, _ = whole[len(start) :].partition(level)
            found.add(f"{start}{head}{below or '='}")
    return sorted(found)


def _values(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """What a group or a parameter can be set to, where that is a list."""
    field = fields().get(name)
    if name in groups:
        return [*groups[name]]
    if field is None:
        return []
    rule = rule_of(field)
    if isinstance(rule, Choice):
        return [*rule.names, *(["null"] if rule.or_null else [])]
    return ["true", "false"] if str(field.type) == "bool" else []


def fields(cls: Any = Config, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Dotted name -> field, of a dataclass and of the dataclasses in it."""
    found: dict[str, dataclasses.Field[Any]] = {}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= fields(hints[field.name], f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = field
    return found


def _nested(groups: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Groups with those inside them: experiment has reference/diffusers/rank32, and experiment/reference/diffusers has
    rank32."""
    found: dict[str, list[str]] = {}
    for group, names in groups.items():
        for name in names:
            parts = name.split("/")
            for depth in range(len(parts)):
                found.setdefault("/".join([group, *parts[:depth]]), []).append("/".join(parts[depth:]))
    return found
