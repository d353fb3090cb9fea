"""Which runs can train together, as one pure function."""

from __future__ import annotations

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
)


def shared(config: Config) -> dict[str, Any]:
    """The settings that the lanes of a pack must have in common; runs with equal ones can train together."""
    values = {}
    for path in MUST_AGREE:
        group, name = path.split(".")
        values[path] = getattr(getattr(config, group), name)
    return values
