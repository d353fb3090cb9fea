"""Which runs can train together: pure functions over configs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dbexp.config import Config, plain
from dbexp.lr_schedule import decay_end

# everything else may differ between the lanes of a pack: subject, rank, rates, schedule, prior, steps, seeds, optimizer
MUST_AGREE = (
    "model.family",
    "model.path",
    "model.revision",
    "model.variant",
    "model.vae",
    "model.single_file_config",
    "model.precision",
    "model.device",
    "model.resolution",
    "lora.sites",
    "train.gradient_checkpointing",
    "store",
)
_DECIDE_TRAINING = ("model", "dataset", "lora", "lr_schedule", "prior", "train", "seeds")
"""Groups that a trained LoRA may depend on; a few of their settings are no part of it, which costs only sharing."""

DEFAULT_SIZE = 8
"""Lanes of a pack unless told otherwise: most of the gain on a CPU, and little memory."""


def shared(config: Config) -> dict[str, Any]:
    """The settings that the lanes of a pack must have in common; runs with equal ones can train together."""
    values = {}
    for path in MUST_AGREE:
        node: Any = config
        for name in path.split("."):
            node = getattr(node, name)
        values[path] = node
    return values


def course(config: Config) -> str:
    """What decides every step of a run, but not how many there are: runs with equal ones share a lane.

    A decay that follows the number of steps makes runs of different length different from their first step on. What
    happens after training (samples, metrics) is no part of it.
    """
    settings: dict[str, Any] = {group: plain(getattr(config, group)) for group in _DECIDE_TRAINING}
    settings["lr_schedule"]["horizon"] = decay_end(config.lr_schedule, steps=settings["train"].pop("steps"))
    settings["seeds"].pop("sample")
    return json.dumps([settings, config.store], sort_keys=True)


def packs(configs: Sequence[Config], size: int = DEFAULT_SIZE) -> list[list[int]]:
    """Gather runs into packs.

    Lanes of like length go together, longest first, so that few lanes of a pack wait for one that is longer. Runs that
    share a lane, each with a finish line of its own, are never parted.

    Args:
        configs: of the runs that are to be trained.
        size: most lanes of a pack, at least 1.

    Returns:
        Indices of `configs`, each exactly once.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    for index, config in enumerate(configs):
        lanes = groups.setdefault(json.dumps(shared(config), sort_keys=True), {})
        lanes.setdefault(course(config), []).append(index)
    gathered = []
    for lanes in groups.values():
        longest_first = sorted(lanes.values(), key=lambda lane: -max(_passes(configs[index]) for index in lane))
        for start in range(0, len(longest_first), size):
            gathered.append(sorted(index for lane in longest_first[start : start + size] for index in lane))
    return gathered


def _passes(config: Config) -> int:
    """Forward passes of a run."""
    return config.train.steps * config.train.grad_accum
