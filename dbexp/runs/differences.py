"""What tells the runs of a sweep from one another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dbexp.runs.record import Run

QUIET = ("tracking", "store", "experiment", "objective")
"""Settings that say where and how a run is kept, not what it is."""


def what_differs(overrides: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Of the overrides of each run, those that not all runs have, in short.

    Example:
        >>> what_differs([["lora.rank=4", "seed=1"], ["lora.rank=8", "seed=1"]])
        [('rank=4',), ('rank=8',)]
    """
    common = set(overrides[0]).intersection(*overrides[1:]) if overrides else set()
    telling = [[override.partition("=") for override in own if override not in common] for own in overrides]
    keys = {key for own in telling for key, _, _ in own}
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: end if last.count(end) == 1 else key for key, end in zip(keys, last, strict=True)}
    return [tuple(short[key] + sign + value for key, sign, value in own) for own in telling]


def differing(runs: Sequence[Run]) -> list[str]:
    """Names of the parameters that are not the same in all runs, `seed` for the five that follow it.

    Runs whose config is lost are passed over.
    """
    configs = [run.config for run in runs if run.config]
    names = dict.fromkeys(name for config in configs for name in config)
    found = [
        name
        for name in names
        if name.split(".")[0] not in QUIET and len({json.dumps(config.get(name)) for config in configs}) > 1
    ]
    follows = [name for name in found if name.startswith("seeds.")]
    one_seed = all(len({config.get(name) for name in [*follows, "seed"]}) == 1 for config in configs)
    return [name for name in found if not (name.startswith("seeds.") and one_seed)]


def titles(runs: Sequence[Run]) -> dict[Path, str]:
    """Folder -> a short title that tells a run from the others: its number, and what differs."""
    told = what_differs([run.overrides for run in runs])
    return {
        run.folder: " ".join((f"{run.folder.name}:", *words)) if words else run.folder.name
        for run, words in zip(runs, told, strict=True)
    }


def setting(value: Any) -> str:
    """A parameter's value as one would write it on the command line."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def is_seed(name: str) -> bool:
    """Whether a parameter is the seed, or one of the five."""
    return name == "seed" or name.startswith("seeds.")
