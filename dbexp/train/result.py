"""What training a run leaves in the store: its LoRA and checkpoints, or word of why there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dbexp.config.check import plain
from dbexp.config.schema import LrScheduleConfig
from dbexp.core import provenance
from dbexp.core.device import processes, wait_for_everyone
from dbexp.core.errors import TrainingDiverged
from dbexp.core.files import write_atomic
from dbexp.core.images import image_hash
from dbexp.core.store import Entry
from dbexp.models import Model
from dbexp.train import adapter, layout
from dbexp.train.lane import Lane, Row, Training
from dbexp.train.lr_schedule import decay_end

VERSION = 1
_DIVERGED = "diverged.json"
"""Marks an unfinished entry whose training cannot succeed: nothing random is left that could end differently."""


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        folder: of the store; holds lora.safetensors, history.jsonl, train.json and checkpoints/.
        lora: the LoRA file.
        history: a row per optimizer step.
        record: seconds, steps, parameters per part.
    """

    folder: Path
    lora: Path
    history: tuple[Row, ...]
    record: dict[str, Any]


def inputs_of(task: Training, model: Model) -> dict[str, Any]:
    """What a trained LoRA depends on: the key of its store entry."""
    cfg = task.config
    train = asdict(cfg.train)
    for unrelated in ("log_every", "gradient_checkpointing"):
        train.pop(unrelated)
    prior = cfg.prior.weight > 0
    return {
        "version": VERSION,
        "model": model.identity,
        "dtype": str(model.dtype),
        "resolution": cfg.model.resolution,
        "lora": asdict(cfg.lora),
        "lr_schedule": asdict(cfg.lr_schedule),
        "train": train,
        "images": [image_hash(path) for path in task.images],
        "prompt": task.prompt,
        "prior_weight": cfg.prior.weight,
        "class_images": [image_hash(path) for path in task.class_images] if prior else [],
        "class_prompt": task.class_prompt if prior else None,
        "seeds": {name: getattr(cfg.seeds, name) for name in ("init", "data", "noise")},
        "processes": processes()[1],
    }


def course_of(inputs: dict[str, Any]) -> dict[str, Any]:
    """What decides every step of a run, but not how many there are: runs with equal ones are one training.

    A decay that follows the number of steps makes runs of different length different from their first step on.
    """
    train, schedule = dict(inputs["train"]), dict(inputs["lr_schedule"])
    schedule["horizon"] = decay_end(LrScheduleConfig(**schedule), steps=train.pop("steps"))
    return {**inputs, "train": train, "lr_schedule": schedule}


@dataclass(frozen=True)
class FinishLine:
    """A finish line: a run that ends when its lane has done its steps."""

    number: int
    task: Training
    entry: Entry

    @property
    def steps(self) -> int:
        """Optimizer steps until here."""
        return self.task.config.train.steps


def is_main() -> bool:
    """Whether this process writes, of several that train together."""
    return processes()[0] == 0


def result_of(folder: Path) -> Trained:
    """Read a finished entry."""
    lines = (folder / layout.HISTORY).read_text().splitlines()
    record = json.loads((folder / layout.RECORD).read_text())
    return Trained(folder, folder / layout.LORA, tuple(json.loads(line) for line in lines), record)


def checkpoint(lane: Lane, lines: Sequence[FinishLine], model: Model) -> None:
    """Keep a lane's LoRA as it is now, for each of the runs that go on."""
    if not is_main():
        return
    for line in lines:
        if line.steps > lane.step:
            path = line.entry.folder / layout.CHECKPOINTS / f"step_{lane.step:06d}.safetensors"
            adapter.save(path, lane.adapter, model, _provenance(line.task, lane.step, model))


def _provenance(task: Training, step: int, model: Model) -> dict[str, Any]:
    """What a LoRA file tells of its making; nothing that would differ from one making to the next."""
    made_with = provenance.collect(model.device)
    config = replace(task.config, dataset=replace(task.config.dataset, path=None, root=None), store=None)
    return {
        "inputs": inputs_of(task, model),
        "config": provenance.public(plain(config)),
        "step": step,
        "model": model.name,
        "provenance": {name: made_with[name] for name in ("dbexp", "git", "packages", "python", "device")},
    }


def finish(lane: Lane, line: FinishLine, model: Model, cost: dict[str, float]) -> Trained:
    """Write a run's result and publish it."""
    folder = line.entry.folder
    if is_main():
        adapter.save(folder / layout.LORA, lane.adapter, model, _provenance(line.task, lane.step, model))
        history = lane.history[: line.steps]
        write_atomic(folder / layout.HISTORY, "".join(json.dumps(row) + "\n" for row in history))
        record = {"steps": lane.step, **cost, "parameters": adapter.parameter_count(lane.adapter)}
        write_atomic(folder / layout.RECORD, json.dumps(record, indent=1))
        line.entry.publish()
    wait_for_everyone()
    return result_of(line.entry.path)


def diverged(lane: Lane, line: FinishLine) -> TrainingDiverged:
    """What to tell of a run that did not reach its finish line; what was good of it stays."""
    folder = line.entry.folder
    kept = [path for _, path in iterate_checkpoints(folder)]
    last = f"last good checkpoint: {kept[-1]}" if kept else "no checkpoint was made before"
    message = (
        f"the loss became NaN or infinite at step {lane.diverged_at} of {line.steps} (train.lr={lane.train.lr:g}); "
        f"lower train.lr or model.precision=fp32. {last}. To train it again with the same settings delete {folder}"
    )
    if is_main():
        marker = {"step": lane.diverged_at, "message": message}
        write_atomic(folder / _DIVERGED, json.dumps(marker, indent=1, ensure_ascii=False))
    return TrainingDiverged(message, kept[-1] if kept else None)


def divergence(folder: Path) -> TrainingDiverged | None:
    """What `diverged` said of an entry when it was trained before, in a pack for instance."""
    marker = folder / _DIVERGED
    if not marker.exists():
        return None
    kept = [path for _, path in iterate_checkpoints(folder)]
    return TrainingDiverged(json.loads(marker.read_text())["message"], kept[-1] if kept else None)


def iterate_checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, LoRA file) of every checkpoint of a run's train folder, in order."""
    for path in sorted((folder / layout.CHECKPOINTS).glob("step_*.safetensors")):
        yield int(path.stem.removeprefix("step_")), path
