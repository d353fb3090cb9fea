"""What training a run leaves in the store: its LoRA and checkpoints, or word of why there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbexp.config.fields import keyed
from dbexp.core import provenance
from dbexp.core.device import processes, wait_for_everyone
from dbexp.core.errors import TrainingDiverged
from dbexp.core.files import write_atomic
from dbexp.core.images import image_hash
from dbexp.core.store import Entry
from dbexp.models import Model
from dbexp.train import adapter, layout
from dbexp.train.data import Training
from dbexp.train.lane import Lane, Row

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
        record: steps; seconds of the pack until here, with the steps that they cover, and the lane's share of them by
            its rows; lanes and memory of the pack, as `dbexp.core.cost` has it; parameters per part.
    """

    folder: Path
    lora: Path
    history: tuple[Row, ...]
    record: dict[str, Any]


def inputs_of(training: Training, model: Model) -> dict[str, Any]:
    """What a trained LoRA depends on: the key of its store entry."""
    cfg = keyed(training.cfg)
    for unrelated in ("log_every", "gradient_checkpointing", "graphs"):
        cfg.pop(unrelated, None)
    if not training.leaves_remainder:
        cfg.pop("remainder", None)
    prior, lora = training.prior_weight > 0, keyed(training.lora)
    if training.start is not None:
        lora["init"] = training.start.sha256  # wherever it lies
    base = {} if training.base_lora is None else {"training_lora": training.base_lora.sha256}
    return {
        "version": VERSION,
        "model": model.identity,
        **base,
        "dtype": str(model.dtype),
        "resolution": training.resolution,
        "lora": lora,
        "lr_schedule": keyed(training.lr_schedule),
        "train": cfg,
        "images": [image_hash(path) for path in training.images],
        "prompt": training.prompt,
        "prior_weight": training.prior_weight,
        "class_images": [image_hash(path) for path in training.class_images] if prior else [],
        "class_prompt": training.class_prompt if prior else None,
        "seeds": {name: getattr(training.seeds, name) for name in ("init", "data", "noise")},
        "processes": processes()[1],
    }


@dataclass(frozen=True)
class FinishLine:
    """Where a run leaves the trajectory that it shares with others: when its steps are done.

    Attributes:
        number: of the run.
        entry: of its result.
    """

    number: int
    training: Training
    entry: Entry

    @property
    def steps(self) -> int:
        """Optimizer steps until here."""
        return self.training.cfg.steps


@dataclass(frozen=True)
class Trajectory:
    """The finish lines of a lane, nearest first.

    Attributes:
        key: see `packing.trajectory`.
    """

    key: str
    lines: tuple[FinishLine, ...]

    @property
    def training(self) -> Training:
        """Of the lane: that of its last finish line."""
        return self.lines[-1].training

    @property
    def passes(self) -> int:
        """Microbatches until the end."""
        return self.training.accumulation.passes(self.training.cfg.steps)


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
            _save(path, line, lane, model)


def _save(path: Path, line: FinishLine, lane: Lane, model: Model) -> None:
    """Write a lane's LoRA as it is now; its metadata holds nothing that differs from one making to the next."""
    versions = provenance.collect(model.device)
    record = {
        "inputs": inputs_of(line.training, model),
        "config": provenance.public(line.training.record),
        "step": lane.step,
        "model": model.name,
        "provenance": {name: versions[name] for name in ("dbexp", "git", "packages", "python", "device")},
    }
    adapter.save(path, lane.adapter, model, record)


def finish(lane: Lane, line: FinishLine, model: Model, cost: Mapping[str, Any]) -> Trained:
    """Write a run's result and publish it."""
    folder = line.entry.folder
    if is_main():
        _save(folder / layout.LORA, line, lane, model)
        history = lane.history[: line.steps]
        write_atomic(folder / layout.HISTORY, "".join(json.dumps(_plain(row)) + "\n" for row in history))
        record = {"steps": lane.step, **cost, "parameters": adapter.parameter_count(lane.adapter)}
        write_atomic(folder / layout.RECORD, json.dumps(record, indent=1))
        line.entry.publish()
    wait_for_everyone()
    return result_of(line.entry.path)


def _plain(row: Row) -> dict[str, float | None]:
    """A history row as JSON knows it, which has no infinity: under fp16 first steps overflow, and are skipped."""
    return {name: value if math.isfinite(value) else None for name, value in row.items()}


def diverged(lane: Lane, line: FinishLine) -> TrainingDiverged:
    """What to tell of a run that did not reach its finish line; what was good of it stays."""
    folder = line.entry.folder
    good = _last_checkpoint(folder)
    last = f"last good checkpoint: {good}" if good else "no checkpoint was made before"
    message = (
        f"the loss became NaN or infinite at step {lane.diverged_at} of {line.steps} (train.lr={lane.cfg.lr:g}); "
        f"lower train.lr or model.precision=fp32. {last}. To train it again with the same settings delete {folder}"
    )
    if is_main():
        marker = {"step": lane.diverged_at, "message": message}
        write_atomic(folder / _DIVERGED, json.dumps(marker, indent=1, ensure_ascii=False))
    return TrainingDiverged(message, good)


def divergence(folder: Path) -> TrainingDiverged | None:
    """What `diverged` said of an entry when it was trained before, in a pack for instance."""
    marker = folder / _DIVERGED
    if not marker.exists():
        return None
    return TrainingDiverged(json.loads(marker.read_text())["message"], _last_checkpoint(folder))


def iterate_checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, LoRA file) of every checkpoint of a run's train folder, in order."""
    for path in sorted((folder / layout.CHECKPOINTS).glob("step_*.safetensors")):
        yield int(path.stem.removeprefix("step_")), path


def _last_checkpoint(folder: Path) -> Path | None:
    return max((path for _, path in iterate_checkpoints(folder)), default=None)
