"""Which runs can train together: pure functions over configs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dbexp.config import Config

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


def packs(configs: Sequence[Config], size: int = DEFAULT_SIZE) -> list[list[int]]:
    """Gather runs into packs.

    Runs of like length go together, longest first, so that few lanes of a pack wait for one that is longer.

    Args:
        configs: of the runs that are to be trained.
        size: most lanes of a pack.

    Returns:
        Indices of `configs`, each exactly once.
    """
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(json.dumps(shared(config), sort_keys=True), []).append(index)
    gathered = []
    for members in groups.values():
        ordered = sorted(members, key=lambda index: (-_passes(configs[index]), index))
        gathered += [sorted(ordered[start : start + size]) for start in range(0, len(ordered), size)]
    return gathered


def _passes(config: Config) -> int:
    """Forward passes of a run."""
    return config.train.steps * config.train.grad_accum
