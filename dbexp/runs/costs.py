"""What a run took: seconds and memory of its stages, and the size of what came out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dbexp.runs.foreign import fits


@dataclass(frozen=True)
class Costs:
    """Numbers of a run, None where they are not on record; what was found in the store cost what it did when made.

    A lane of a pack has its share: of the seconds by its rows in the batch, of the memory one part in `lanes`.
    """

    train_seconds: float | None = None
    """Of its training; of a lane that several runs share, until its own steps are done."""
    train_steps: int | None = None
    """Steps that these seconds cover: fewer than all where training was interrupted."""
    train_memory_mib: float | None = None
    """The most that its training held; `memory_of` says of what."""
    lanes: int | None = None
    """Trainings in its pack; 1: it trained alone, and nothing is a share."""
    sample_seconds: float | None = None
    """Of its images with the LoRA, class samples included; those of the base model are shared by many runs."""
    sample_images: int | None = None
    """Images that these seconds cover: fewer than all where drawing was interrupted."""
    sample_memory_mib: float | None = None
    """The most that drawing held."""
    evaluate_seconds: float | None = None
    """Of its metrics; pictures that other runs had embedded already cost nothing."""
    evaluate_memory_mib: float | None = None
    """The most that its metrics held."""
    memory_of: str | None = None
    """cuda: tensors on the GPU; resident: the process in main memory, with all that was there before; since_start: the
    same, but the most since the process began."""
    parameters: int | None = None
    """Trained."""
    lora_bytes: int | None = None
    """Of its file."""

    @property
    def is_share(self) -> bool:
        """Whether seconds and memory of training are a lane's part of a pack."""
        return (self.lanes or 1) > 1


NO_COSTS = Costs()
NAMES = tuple(field.name for field in fields(Costs))


def costs_of(record: Mapping[str, Any], parameters: int | None) -> Costs:
    """From metrics.json, which may be a stranger's or an older version's.

    Raises:
        ValueError: what it says is no number.
    """
    report = record.get("report")
    of_report = report.get("cost") if isinstance(report, Mapping) else None
    train, sample, evaluate = (
        part if isinstance(part, Mapping) else {} for part in (record.get("train"), record.get("sample"), of_report)
    )
    lanes, memory = _whole(train.get("lanes")), _number(train.get("memory_mib"))
    memory_of = next((part["memory_of"] for part in (train, sample, evaluate) if part.get("memory_of")), None)
    if not fits(memory_of, str | None) or (lanes is not None and lanes < 1):
        raise ValueError("a cost is not what dbexp writes there")
    return Costs(
        train_seconds=_number(train.get("seconds_share")),
        train_steps=_whole(train.get("seconds_cover_steps")),
        train_memory_mib=memory if memory is None else memory / (lanes or 1),
        lanes=lanes,
        sample_seconds=_number(sample.get("seconds")),
        sample_images=_whole(sample.get("images")),
        sample_memory_mib=_number(sample.get("memory_mib")),
        evaluate_seconds=_number(evaluate.get("seconds")),
        evaluate_memory_mib=_number(evaluate.get("memory_mib")),
        memory_of=memory_of,
        parameters=parameters,
        lora_bytes=_whole(record.get("lora_bytes")),
    )


def _number(value: Any) -> float | None:
    if not fits(value, float | None) or (value is not None and not math.isfinite(value)):
        raise ValueError("a cost is no number")
    return value if value is None else float(value)


def _whole(value: Any) -> int | None:
    if not fits(value, int | None):
        raise ValueError("a cost is no whole number")
    return value if value is None else int(value)
