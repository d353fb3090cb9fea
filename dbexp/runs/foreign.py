"""What is read from the folder of a run, which may be a stranger's: regular files in it, of the types they should be.

Nothing that such a file says reaches outside of the folder, is resolved, or is believed before its type is known.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from dbexp.config.groups import options_of
from dbexp.config.schema import ModelConfig
from dbexp.config.values import flatten
from dbexp.core.files import locate
from dbexp.evaluate.report import Copy, ImageScores, Report

_MOST_YAML = 1_000_000  # characters; a config has a few thousand
_DEEPEST_YAML = 50  # levels; a config has five
_REFERENCE = re.compile(r"\$\{([a-z_0-9.]+)\}")
_LARGEST = 2**63


def within(folder: Path, path: str | Path) -> bool:
    """Whether a path in a folder stays in it, links and all, and is no device, pipe or folder; it may be missing."""
    try:
        file = (folder / path).resolve()
        return file.is_relative_to(folder.resolve()) and (file.is_file() or not file.exists())
    except (OSError, ValueError, RuntimeError):  # a name that no disk takes; a circle of links, before Python 3.13
        return False


def regular(folder: Path, path: str | Path) -> bool:
    """Whether a path in a folder is a regular file there."""
    return within(folder, path) and (folder / path).is_file()


def read_text(folder: Path, file: Path) -> str:
    """The text of a file of a run.

    Args:
        folder: of the run.
        file: with the folder.

    Raises:
        OSError: it is missing or cannot be read.
        ValueError: it is no regular file of the folder, or no text.
    """
    if not within(folder, file.relative_to(folder)):
        raise ValueError(f"{file.relative_to(folder).as_posix()} is no regular file in the folder of the run")
    return file.read_text(encoding="utf-8")


def read_json(folder: Path, file: Path) -> dict[str, Any]:
    """The dict of a JSON file of a run; raises as `read_text` does, and ValueError for what is no dict."""
    try:
        values = json.loads(read_text(folder, file))
    except RecursionError:
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"{file.name} is no record that dbexp wrote")
    return values


def read_composed(folder: Path, file: Path) -> dict[str, Any]:
    """The config that Hydra composed for a run, as text and numbers: no interpolation is resolved.

    A value that is nothing but the name of another in the file, such as `${seed}`, is that value where it is literal;
    all other interpolations stay text.

    Raises:
        OSError, ValueError: as `read_text` does, and for what is no config.
    """
    text = read_text(folder, file)
    try:
        if len(text) > _MOST_YAML:
            raise ValueError(f"{file.name} is too long for a config")
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # a few lines of aliases of aliases are billions of values
                raise ValueError(f"{file.name} has aliases, which no config of dbexp has")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST_YAML:  # thousands of levels take the parser minutes
                raise ValueError(f"{file.name} is nested too deeply for a config")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file.name} is no YAML ({type(error).__name__})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file.name} is no group of parameters")
    return _with_references(values, flatten(values))


def _with_references(values: Mapping[str, Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    named = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            named[key] = _with_references(value, flat)
            continue
        reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        target = flat.get(reference[1]) if reference else None
        named[key] = value if target is None or "${" in str(target) else target
    return named


def check_report(report: Report) -> None:
    """Refuse a report whose values are not of their types, or whose pictures are not in the run's folder.

    Raises:
        ValueError: it is no report that dbexp wrote.
    """
    for name, hint in _hints(Report).items():
        if not fits(getattr(report, name), hint):
            raise ValueError(f"report.{name} is not what dbexp writes there")
    if "run" not in report.rows:
        raise ValueError("report.rows lacks the row of the run")
    for path in _paths(report):
        if "\0" in path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"it names a picture outside of the run's folder, {path!r}")


def _paths(report: Report) -> Iterator[str]:
    """Of every picture that a report names."""
    records: Iterable[ImageScores | Copy] = (*report.images, *report.class_images, *report.copies)
    for record in records:
        yield record.path
        if record.nearest is not None:
            yield record.nearest


def fits(value: object, hint: Any) -> bool:
    """Whether a value is of a type, all the way down; whole numbers are numbers, truth values are not.

    Args:
        value: dataclasses, dicts, lists, texts, numbers, None.
        hint: a type as dataclasses have it.
    """
    if hint is Any:
        return True
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return isinstance(value, hint) and all(fits(getattr(value, name), kind) for name, kind in _hints(hint).items())
    if origin in (tuple, list):
        return isinstance(value, tuple | list) and all(fits(item, args[0]) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, args[0]) and fits(item, args[1]) for key, item in value.items()
        )
    if hint in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
        return whole or (hint is float and isinstance(value, float))
    return isinstance(value, hint)


def unnamed_models(model: ModelConfig, named: Collection[str]) -> list[str]:
    """What a record would have fetched from the hub that its reader never named: neither an option of dbexp, nor given
    on the command line, nor on this machine already. Whoever wants that says so.

    Args:
        model: of the record.
        named: paths that the user has given.

    Returns:
        The hub ids.
    """
    shipped = {str(value) for option in options_of("model") for value in option.values()}
    places = (model.path, model.vae, model.single_file_config)
    strange = [path for path in places if path is not None and path not in (*named, *shipped, "random")]
    return [path for path in strange if not locate(path).exists() and not _is_cached(path) and path.count("/") == 1]


def _is_cached(repository: str) -> bool:
    """Whether something of a hub repository is on this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, f"models--{repository.replace('/', '--')}").is_dir()


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)
