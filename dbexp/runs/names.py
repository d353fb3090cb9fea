"""What runs are called and how they are told apart: names, tags, titles, what differs, and what does not matter."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from dbexp.config.schema import Config

_HOUSEKEEPING = ("hydra", "tracking", "store", "experiment", "objective")
"""Groups of settings that say where and how a run is kept, and nothing of what it is."""
_SUBJECT = ("dataset", *(f"dataset.{field}" for field in ("name", "path", "root", "class_noun", "live")))
"""Overrides that say which subject: its name stands for them, however many it took."""
_NAME_LENGTH = 100
_TAG_LENGTH = 64  # W&B refuses longer tags
WANDB_LENGTH = 128
"""Characters of W&B's other names: projects, groups, runs, artifacts; longer ones are refused by the library or by the
server, which says so when a run is over. Checked with wandb 0.31.0."""


def matters(parameter: str) -> bool:
    """Whether a parameter or group, by its dotted name, says what a run is and not only where and how it is kept."""
    return re.split(r"[./@]", parameter)[0] not in _HOUSEKEEPING


def is_seed(parameter: str) -> bool:
    """Whether a parameter is the seed, or one of the five."""
    return parameter == "seed" or parameter.startswith("seeds.")


def short_names(parameters: Iterable[str]) -> dict[str, str]:
    """Dotted name -> its last part (of `lr_schedule.name` the first) where that is enough to know it."""
    ends = {name: name.removesuffix(".name").rpartition(".")[2] for name in parameters}
    count = Counter(ends.values())
    return {name: end if count[end] == 1 else name for name, end in ends.items()}


# -- of one run -------------------------------------------------------------------------------------------------------


def run_name(cfg: Config, overrides: Sequence[str], now: datetime | None = None) -> str:
    """A short name that tells runs apart: `tracking.name`, else what was overridden, else dataset and time.

    Args:
        cfg: a checked config.
        overrides: as on the command line; those that only say where and how a run is kept are left out.
        now: for a run without telling overrides; None: the present, local time.

    Example:
        >>> run_name(Config(), ["lora.rank=16", "prior.weight=0", "tracking=online"])
        'rank=16 weight=0'
    """
    if cfg.tracking.name:
        return cfg.tracking.name
    pairs = [_pair(override) for override in overrides]
    keys = [key for key, _ in pairs]
    words = [cfg.dataset.name] if any(key in _SUBJECT for key in keys) else []
    words += [cfg.experiment] if "experiment" in keys and cfg.experiment else []
    special = [(key, value) for key, value in pairs if matters(key) and key not in _SUBJECT]
    short = short_names(key for key, _ in special)
    words += [_word(short[key], _short_value(value)) for key, value in special]
    return cut(" ".join(words) or f"{cfg.dataset.name} {now or datetime.now():%Y-%m-%d %H:%M}", _NAME_LENGTH)


def tags(cfg: Config) -> tuple[str, ...]:
    """Experiment, dataset, model, and the user's own; each once."""
    all_tags = [cfg.experiment, cfg.dataset.name, cfg.model.name, *cfg.tracking.tags]
    return tuple(dict.fromkeys(cut(tag, _TAG_LENGTH) for tag in all_tags if tag))


def sweep_name(folder: Path) -> str:
    """How the sweep in a folder is called: the last two parts, by default its day and its time."""
    return "/".join(folder.parts[-2:])


# -- of a run among others --------------------------------------------------------------------------------------------


def what_differs(overrides: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Of the overrides of each run, those that not all runs have, in short.

    Example:
        >>> what_differs([["lora.rank=4", "seed=1"], ["lora.rank=8", "seed=1"]])
        [('rank=4',), ('rank=8',)]
    """
    common = set(overrides[0]).intersection(*overrides[1:]) if overrides else set()
    special = [[_pair(override) for override in words if override not in common] for words in overrides]
    short = short_names({key for pairs in special for key, _ in pairs})
    return [tuple(_word(short[key], value) for key, value in pairs) for pairs in special]


def titles(overrides: Mapping[Path, Sequence[str]]) -> dict[Path, str]:
    """Folder -> a short title that tells a run from the others: its number or path, and what differs.

    Args:
        overrides: of each run, by its folder.
    """
    above = os.path.commonpath([folder.parent for folder in overrides]) if overrides else ""
    names = {folder: folder.relative_to(above).as_posix() for folder in overrides}
    return {
        folder: ": ".join(filter(None, [names[folder], " ".join(words)]))
        for folder, words in zip(overrides, what_differs([*overrides.values()]), strict=True)
    }


def differing(configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the parameters that are not the same in all runs, `seed` for the five that follow it.

    Args:
        configs: of the runs, flat; those that are lost, and so empty, are passed over.
    """
    configs = [config for config in configs if config]
    all_names = dict.fromkeys(name for config in configs for name in config)
    names = [
        name for name in all_names if matters(name) and len({json.dumps(config.get(name)) for config in configs}) > 1
    ]
    follow = [name for name in names if name.startswith("seeds.")]
    one_seed = all(len({config.get(name) for name in [*follow, "seed"]}) == 1 for config in configs)
    return [name for name in names if not (name in follow and one_seed)]


def setting(value: Any) -> str:
    """A parameter's value as one would write it on the command line."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _pair(override: str) -> tuple[str, str]:
    """Name and value of an override."""
    key, _, value = override.lstrip("+~").partition("=")
    return key, value


def _word(name: str, value: str) -> str:
    return f"{name}={value}" if value else name


def _short_value(value: str) -> str:
    """An override's value without quotes; of a path only the last part."""
    value = value.strip("'\"")
    is_path = value.startswith(("/", "~", "./", "../"))
    return Path(value).name if is_path else value


def cut(text: str, length: int = WANDB_LENGTH) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
