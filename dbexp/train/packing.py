"""Which runs can train together: pure functions over configs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dbexp.config.check import plain
from dbexp.config.schema import Config
from dbexp.train.lr_schedule import decay_end

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

MOST_LANES = 8
"""Of a pack, unless told otherwise: on two CPU cores more gain next to nothing (benchmarks/), and take memory."""
MOST_LANES_ON_GPU = 16
"""The same for a GPU, which more rows keep busier."""
MEMORY_SHARE = {"cuda": 0.9, "cpu": 0.5}
"""Part of the free memory that a pack may take. On a CPU the rest is for other programs, and for what the estimate,
which counts only what is kept for the backward pass, leaves out."""


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


def packs(configs: Sequence[Config], size: int = MOST_LANES) -> list[list[int]]:
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


def lanes_that_fit(free: float, fixed: float, lane: float, most: int) -> int:
    """How many lanes a memory has room for, from 1 to `most`.

    Args:
        free: bytes that may be used.
        fixed: bytes that a pack takes beside its lanes.
        lane: bytes of a lane.
        most: more are of no use.
    """
    return most if lane <= 0 else max(1, min(most, int((free - fixed) // lane)))


def _passes(config: Config) -> int:
    """Forward passes of a run."""
    return config.train.steps * config.train.grad_accum
