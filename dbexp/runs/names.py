"""What W&B runs are called and tagged: short, and enough to tell them apart in a list."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from dbexp.config.schema import Config

_QUIET_OVERRIDES = ("hydra", "tracking", "store")  # where and how a run is kept says nothing about it
_SUBJECT_OVERRIDES = ("dataset", *(f"dataset.{field}" for field in ("name", "path", "root", "class_noun", "live")))
_NAME_LENGTH = 100
_TAG_LENGTH = 64  # W&B refuses longer tags


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
    pairs = [override.lstrip("+~").partition("=")[::2] for override in overrides]
    heads = [re.split(r"[./@]", key)[0] for key, _ in pairs]
    # which subject and which preset is told by their names, however many overrides it took
    names = [cfg.dataset.name] if any(key in _SUBJECT_OVERRIDES for key, _ in pairs) else []
    names += [cfg.experiment] if "experiment" in heads and cfg.experiment else []
    said = (*_QUIET_OVERRIDES, "experiment")
    telling = [
        pair for pair, head in zip(pairs, heads, strict=True) if head not in said and pair[0] not in _SUBJECT_OVERRIDES
    ]
    if not telling and not names:
        return f"{cfg.dataset.name} {now or datetime.now():%Y-%m-%d %H:%M}"
    short = [key.rpartition(".")[2] for key, _ in telling]
    words = [
        f"{last if short.count(last) == 1 else key}={_short_value(value)}"
        for last, (key, value) in zip(short, telling, strict=True)
    ]
    return _cut(" ".join([*names, *words]), _NAME_LENGTH)


def sweep_name(folder: Path) -> str:
    """How W&B calls the sweep in a folder: the last two parts, by default its day and its time."""
    return "/".join(folder.parts[-2:])


def tags(cfg: Config) -> tuple[str, ...]:
    """Experiment, dataset, model, and the user's own; each once."""
    all_tags = [cfg.experiment, cfg.dataset.name, cfg.model.name, *cfg.tracking.tags]
    return tuple(dict.fromkeys(_cut(tag, _TAG_LENGTH) for tag in all_tags if tag))


def _short_value(value: str) -> str:
    """An override's value without quotes; of a path only the last part."""
    value = value.strip("'\"")
    is_path = value.startswith(("/", "~", "./", "../"))
    return Path(value).name if is_path else value


def _cut(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
