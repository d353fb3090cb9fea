"""Which runs train together, and which share a lane: pure functions over settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dbexp.config.schema import Config, LrScheduleConfig
from dbexp.config.values import plain
from dbexp.core.hashing import key_of
from dbexp.train.lr_schedule import decay_end

_NOT_OF_TRAINING = ("name", "label", "sample_path")
"""Settings of the model that tell how it is called, and who draws."""
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
    """The settings that the lanes of a pack must have in common; runs with equal ones can train together.

    Everything else may differ: subject, rank, rates, schedule, prior, steps, seeds, optimizer.
    """
    model = {f"model.{name}": value for name, value in plain(config.model).items() if name not in _NOT_OF_TRAINING}
    return model | {
        "lora.sites": config.lora.sites,
        "train.gradient_checkpointing": config.train.gradient_checkpointing,
        "train.compile": config.train.compile,
        "train.graphs": config.train.graphs,
        "store": config.store,
    }


def trajectory(settings: Mapping[str, Any]) -> str:
    """Key of what decides every step of a training, but not how many there are: those with equal keys share a lane.

    A decay that follows the number of steps makes trainings of different length different from their first step on.

    Args:
        settings: JSON-like; all that the training depends on, among it `train` and `lr_schedule`, the two groups of a
            config. Of a training that is about to start they are the inputs of its entry in the store; of a run that
            is only planned, `planned(config)`.
    """
    train, schedule = dict(settings["train"]), dict(settings["lr_schedule"])
    schedule["horizon"] = decay_end(LrScheduleConfig(**schedule), steps=train.pop("steps"))
    return key_of({**settings, "train": train, "lr_schedule": schedule})


def planned(config: Config) -> dict[str, Any]:
    """What the training of a run depends on, as far as its config tells. What happens after training is no part."""
    settings: dict[str, Any] = {group: plain(getattr(config, group)) for group in _DECIDE_TRAINING}
    settings["seeds"].pop("sample")
    settings["model"].pop("sample_path")
    return {**settings, "store": config.store}


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
        lanes.setdefault(trajectory(planned(config)), []).append(index)
    result = []
    for lanes in groups.values():
        longest_first = sorted(lanes.values(), key=lambda lane: -max(_passes(configs[index]) for index in lane))
        for start in range(0, len(longest_first), size):
            result.append(sorted(index for lane in longest_first[start : start + size] for index in lane))
    return result


def seats(running: Sequence[bool]) -> list[int]:
    """Slots that have rows in the batch of a pack whose shapes are recorded or compiled: as few shapes as may be.

    The batch has seats for K lanes, then for half as many, and so on, each time rounded up: the fewest that hold all
    lanes that go on. Seats that are left over stay with lanes that have ended, those of the first slots; their rows
    count nothing, and make no optimizer step. A pack of eight has four shapes in its life, and at most twice the rows
    that it needs. Where a shape costs nothing, an idle row would, so only those that go on have any.

    Args:
        running: by slot, whether its lane goes on.
    """
    places, count = len(running), sum(running)
    while places > 1 and -(-places // 2) >= count:
        places = -(-places // 2)
    idle = [slot for slot, runs in enumerate(running) if not runs]
    return sorted([slot for slot, runs in enumerate(running) if runs] + idle[: places - count])


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
