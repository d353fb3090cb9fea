"""What `dbexp --help` prints: every parameter with type, value and meaning, and every option of every group.

Nothing is written twice: types come from the dataclasses of `dbexp.config.schema`, meanings from the strings under
their fields, values from what Hydra composed for this command line, options from the folders it searched.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from dbexp.config import schema
from dbexp.config.fields import rule_of
from dbexp.config.groups import folders, options
from dbexp.config.typed import type_hints

RESOLVER = "dbexp.help"

_USAGE = """\
dbexp: DreamBooth-LoRA experiments as Hydra sweeps

  dbexp                                        one run with the defaults
  dbexp model=sd15 dataset=dog3 lora.rank=32   other options, one parameter
  dbexp dataset=folder dataset.path=photos dataset.class_noun=dog dataset.live=true
  dbexp -m lora.rank=16,32 prior.weight=0,1    a sweep: every combination
  dbexp -m experiment=reference/diffusers      a sweep from a preset
  dbexp -m hydra.launcher.plan_only=true [...] what a sweep would do: jobs, what is there already, packs
  dbexp --cfg job --resolve [...]              what a command would run, without running it
  dbexp --config-dir FOLDER [...]              options of your own beside the shipped ones
  eval "$(dbexp -sc install=bash)"             tab completion in this shell
  dbexp --hydra-help                           Hydra's own switches
"""
_MIN_WIDTH, _MAX_WIDTH = 72, 120


def _typed(cls: Any) -> Any:
    """A dataclass of the schema for Hydra, which then knows every name, and takes values of any type: `check` looks at
    all of them at once, and says what is wrong in our words. Hydra says it of the first alone, takes 2 for true, and
    ends in a traceback where a number has too many digits."""
    hints, made = type_hints(cls), []
    for field in dataclasses.fields(cls):
        hint, default = hints[field.name], field.default
        if dataclasses.is_dataclass(hint):
            hint = _typed(hint)
            made.append((field.name, hint, dataclasses.field(default_factory=hint)))
        elif field.default_factory is not dataclasses.MISSING:
            made.append((field.name, Any, dataclasses.field(default_factory=field.default_factory)))
        else:
            made.append((field.name, Any, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(cls.__name__, made, namespace={"__module__": __name__})


@functools.cache
def _config() -> Any:
    return _typed(schema.Config)


def __getattr__(name: str) -> Any:
    """The dataclasses that Hydra has, by name: a composed config is of them, and is pickled for other processes."""
    waiting = [] if name.startswith("_") else [_config()]
    while waiting:
        cls = waiting.pop()
        if cls.__name__ == name:
            return cls
        waiting += [field.type for field in dataclasses.fields(cls) if dataclasses.is_dataclass(field.type)]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def register() -> None:
    """Tell Hydra about the schema, on which `conf/config.yaml` builds, and about the help, `${dbexp.help:}`."""
    ConfigStore.instance().store(name="schema", node=_config())
    OmegaConf.register_new_resolver(RESOLVER, _resolve, replace=True)


def _resolve(*, _root_: DictConfig) -> str:
    """The help text of a composed config, escaped for the `string.Template` that Hydra passes it through."""
    return text(_root_, folders(_root_), screen_width()).replace("$", "$$")


def text(cfg: DictConfig, roots: list[Path], width: int) -> str:
    """The whole help.

    Args:
        cfg: a composed config; its values are shown.
        roots: where options of groups are looked for.
        width: of the lines, in characters.
    """
    parts = [_USAGE, "GROUPS (group=option)\n", *_group_lines(options(roots), width)]
    parts.append("\nPARAMETERS (name=value)\n")
    parts.append(textwrap.fill("The values are those of this command: add overrides and ask for help again.", width))
    parts.extend(class_lines(schema.Config, "", cfg, width))
    return "\n".join(parts)


def screen_width() -> int:
    """Of the terminal, within what can be read."""
    return min(max(shutil.get_terminal_size().columns, _MIN_WIDTH), _MAX_WIDTH)


def docs(cls: type) -> dict[str, str]:
    """Field name -> the string under the field, of a dataclass of any module."""
    module = inspect.getmodule(cls)
    assert module is not None
    return _all_docs(module)[cls.__name__]


@functools.cache
def _all_docs(module: ModuleType) -> dict[str, dict[str, str]]:
    tree = ast.parse(inspect.getsource(module))
    return {node.name: dict(_documented(node.body)) for node in tree.body if isinstance(node, ast.ClassDef)}


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Every annotated name that has a string right under it, with the string."""
    for field, below in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            yield field.target.id, inspect.cleandoc(str(below.value.value))


def _group_lines(groups: dict[str, list[str]], width: int) -> Iterator[str]:
    column = max(map(len, groups), default=0) + 4
    for group, names in groups.items():
        yield textwrap.fill(
            " ".join(names),
            width,
            initial_indent=f"  {group}".ljust(column),
            subsequent_indent=" " * column,
            break_long_words=False,
            break_on_hyphens=False,
        )


def class_lines(cls: type, prefix: str, cfg: DictConfig, width: int) -> Iterator[str]:
    """The parameters of one dataclass, its own fields first, then those of the dataclasses in it.

    Args:
        cls: the dataclass.
        prefix: of the dotted names.
        cfg: holds the values to show.
        width: of the lines, in characters.
    """
    hints = get_type_hints(cls)
    nested = [field for field in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[field.name])]
    for field in dataclasses.fields(cls):
        if field not in nested:
            name = f"{prefix}{field.name}"
            yield f"  {name}: {type_name(hints[field.name])} = {_value(cfg, name)}"
            yield _paragraph(" ".join(filter(None, (docs(cls)[field.name], rule_of(field).sentence()))), width)
    for field in nested:
        name = f"{prefix}{field.name}"
        yield f"\n{name}"
        yield _paragraph(docs(cls)[field.name], width, indent=2)
        yield from class_lines(hints[field.name], f"{name}.", cfg, width)


def _paragraph(sentence: str, width: int, indent: int = 6) -> str:
    return textwrap.fill(sentence, width, initial_indent=" " * indent, subsequent_indent=" " * indent)


def type_name(hint: Any) -> str:
    """A type as a user would say it: `float | null`, `list[str]`."""
    name = hint.__name__ if type(hint) is type else str(hint)
    return name.removeprefix("typing.").replace("typing.", "").replace("None", "null")


def _value(cfg: DictConfig, name: str) -> str:
    """A composed value as one would write it on the command line."""
    if OmegaConf.is_missing(*_parent(cfg, name)):
        return "??? (must be given)"
    value = OmegaConf.select(cfg, name)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _parent(cfg: DictConfig, name: str) -> tuple[Any, str]:
    """The node that holds a parameter, and the parameter's key in it."""
    path, _, key = name.rpartition(".")
    return (OmegaConf.select(cfg, path) if path else cfg), key
