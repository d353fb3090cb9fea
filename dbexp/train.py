"""Train LoRAs: one loop over a pack of K >= 1 lanes on one frozen base (DreamBooth, arXiv 2208.12242, section 3.2).

The loss of a lane is mean(instance) + weight * mean(class); losses are summed over lanes, never averaged, so no lane's
gradient knows of another. A lane's result is the same alone or in a pack.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dbexp import lora, pack, provenance
from dbexp.config import LrScheduleConfig, plain
from dbexp.device import largest_over_processes, processes, wait_for_everyone
from dbexp.errors import Interrupted, TrainingDiverged
from dbexp.lane import Lane, Row, Task
from dbexp.latents import encode
from dbexp.loop import Loop, Signals
from dbexp.lr_schedule import decay_end
from dbexp.models import Model
from dbexp.progress import progress
from dbexp.store import Entry, Store, file_hash, key_of, write_atomic

log = logging.getLogger(__name__)

VERSION = 1
_STATE = "state.pt"
_DIVERGED = "diverged.json"
"""Marks an unfinished entry whose training cannot succeed: nothing random is left that could end differently."""
OnRows = Callable[[int, Sequence[Row]], None]
"""Called with (task number, new history rows) whenever losses have come from the device."""


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


def inputs_of(task: Task, model: Model) -> dict[str, Any]:
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
        "images": [file_hash(path) for path in task.images],
        "prompt": task.prompt,
        "prior_weight": cfg.prior.weight,
        "class_images": [file_hash(path) for path in task.class_images] if prior else [],
        "class_prompt": task.class_prompt if prior else None,
        "seeds": {name: getattr(cfg.seeds, name) for name in ("init", "data", "noise")},
        "processes": processes()[1],
    }


def train(
    tasks: Sequence[Task], model: Model, store: Store, on_rows: OnRows | None = None
) -> list[Trained | Exception]:
    """Train a pack, or find its results in the store.

    Args:
        tasks: runs that agree in `pack.shared`. Each has a slot of its own.
        model: the frozen base.
        on_rows: told of losses as they come.

    Returns:
        For each task its result, or `TrainingDiverged`; a run that diverged before is not trained again.

    Raises:
        ValueError: the tasks can't train together.
        Interrupted: SIGINT or SIGTERM came; every lane was checkpointed first.
    """
    agreed = pack.shared(tasks[0].config)
    if any(pack.shared(task.config) != agreed for task in tasks):
        raise ValueError("the runs of a pack must agree in " + ", ".join(pack.MUST_AGREE))
    keys = [inputs_of(task, model) for task in tasks]
    results: dict[int, Trained | Exception] = {}
    with contextlib.ExitStack() as claims:
        # in the order of their places, so that two sweeps that want the same entries never wait for each other
        order = sorted(range(len(tasks)), key=lambda i: store.place("train", keys[i]))
        first = {key_of(keys[i]): i for i in reversed(order)}
        entries = {i: claims.enter_context(_claim(store, keys[i])) for i in order if i == first[key_of(keys[i])]}
        lines = [_Line(i, tasks[i], entry) for i, entry in sorted(entries.items()) if not entry.finished]
        results |= {line.number: error for line in lines if (error := _divergence(line.entry.folder))}
        lines = [line for line in lines if line.number not in results]
        if lines:
            shared: dict[str, list[_Line]] = {}
            for line in lines:
                shared.setdefault(key_of(_course(keys[line.number])), []).append(line)
            courses = [sorted(members, key=lambda line: line.steps) for members in shared.values()]
            results |= _train_pack(courses, model, store, on_rows or (lambda number, rows: None))
        for i, entry in entries.items():
            results.setdefault(i, _result(entry.place) if entry.finished else RuntimeError("training did not end"))
    return [results[first[key_of(key)]] for key in keys]


@dataclass(frozen=True)
class _Line:
    """A finish line: a run that ends when its lane has done its steps."""

    number: int
    task: Task
    entry: Entry

    @property
    def steps(self) -> int:
        """Optimizer steps until here."""
        return self.task.config.train.steps


def _course(inputs: dict[str, Any]) -> dict[str, Any]:
    """What decides every step of a run, but not how many there are: runs with equal ones are one training.

    A decay that follows the number of steps makes runs of different length different from their first step on.
    """
    train, schedule = dict(inputs["train"]), dict(inputs["lr_schedule"])
    schedule["horizon"] = decay_end(LrScheduleConfig(**schedule), steps=train.pop("steps"))
    return {**inputs, "train": train, "lr_schedule": schedule}


@contextlib.contextmanager
def _claim(store: Store, inputs: dict[str, Any]) -> Iterator[Entry]:
    """Hold an entry. Of several processes that train it together the main one holds it for all."""
    if _is_main():
        with store.claim("train", inputs) as entry:
            wait_for_everyone()
            yield entry
    else:
        wait_for_everyone()
        yield store.look("train", inputs)


def _result(folder: Path) -> Trained:
    lines = (folder / "history.jsonl").read_text().splitlines()
    record = json.loads((folder / "train.json").read_text())
    return Trained(folder, folder / "lora.safetensors", tuple(json.loads(line) for line in lines), record)


# -- a pack -----------------------------------------------------------------------------------------------------------


def _train_pack(
    courses: Sequence[Sequence[_Line]], model: Model, store: Store, on_rows: OnRows
) -> dict[int, Trained | Exception]:
    """Train a pack and publish the entry of every finish line.

    Args:
        courses: for each lane its finish lines, nearest first; the last one's task is the lane's.
    """
    lanes = prepare([lines[-1].task for lines in courses], model, store)
    try:
        with open_slots(lanes, model) as slots, Signals() as signals:
            for slot, lane in enumerate(lanes):
                _begin(lane, slot, slots, model, courses[slot])
            total, done = sum(lane.steps for lane in lanes), sum(lane.step for lane in lanes)
            with progress("train", total, done=done) as bar:

                def tell(slot: int, rows: Sequence[Row]) -> None:
                    for line in courses[slot]:
                        on_rows(line.number, [row for row in rows if row["step"] <= line.steps])

                results = _run(Loop(lanes, slots, model, bar, tell), courses, model, signals)
            if signals.received is not None:
                raise Interrupted(signals.received, "training is done; the same command goes on after it")
    finally:
        model.enable_gradient_checkpointing(False)
    return results


def _text_rank(lane: Lane) -> int:
    config = lane.task.config.lora
    return config.text_encoder_rank or config.rank


def open_slots(lanes: Sequence[Lane], model: Model) -> lora.Lanes:
    """Slots for lanes, each empty still; gradient checkpointing is switched as the lanes want it."""
    ranks = {"unet": max(lane.task.config.lora.rank for lane in lanes)}
    if any(lane.trains_text for lane in lanes):
        ranks["text_encoder"] = max(_text_rank(lane) for lane in lanes if lane.trains_text)
    cfg = lanes[0].task.config
    slots = lora.Lanes(model, cfg.lora.sites, len(lanes), ranks)
    model.enable_gradient_checkpointing(cfg.train.gradient_checkpointing)
    return slots


def enter_slot(lane: Lane, slot: int, slots: lora.Lanes, model: Model) -> None:
    """Give a lane its slot, with fresh weights."""
    cfg = lane.task.config
    ranks, alphas = {"unet": cfg.lora.rank}, {"unet": cfg.lora.alpha or float(cfg.lora.rank)}
    if lane.trains_text:
        ranks["text_encoder"] = _text_rank(lane)
        alphas["text_encoder"] = cfg.lora.alpha or float(_text_rank(lane))
    lane.begin(slots.open(slot, ranks, alphas, cfg.seeds.init), model.device, model.dtype)


def prepare(tasks: Sequence[Task], model: Model, store: Store) -> list[Lane]:
    """Encode what never changes, and drop the parts that training does not need."""
    process, count = processes()
    lanes = []
    for task in tasks:
        cfg, priors = task.config, task.config.prior.weight > 0
        prompts = [task.prompt, task.class_prompt] if priors else [task.prompt]
        texts = model.tokenize(prompts)
        if not cfg.lora.text_encoder:
            with torch.no_grad():
                texts = model.encode_tokens(texts)
        arguments = (model, cfg.train, cfg.model.resolution, cfg.seeds.data, store)
        instance = encode(task.images, *arguments, title="pictures")
        prior = encode(task.class_images, *arguments, title="class images") if priors else None
        lanes.append(Lane(task, instance, prior, texts, model.train_timesteps, process, count))
    model.release("vae")
    if not any(lane.trains_text for lane in lanes):
        model.release("text_encoder")
    return lanes


def _begin(lane: Lane, slot: int, slots: lora.Lanes, model: Model, lines: Sequence[_Line]) -> None:
    """Give a lane its slot, and its last checkpoint if there is one before the first finish line."""
    enter_slot(lane, slot, slots, model)
    place = lines[-1].entry.folder / _STATE
    state = torch.load(place, map_location=model.device, weights_only=True) if place.exists() else None
    if state is not None and state["step"] < lines[0].steps:
        lane.load_state(state)
        log.info("train: going on from step %d of %d", lane.step, lane.steps)
    log.info("train: %s parameters", lora.parameter_count(lane.adapter))


def _run(
    loop: Loop, courses: Sequence[Sequence[_Line]], model: Model, signals: Signals
) -> dict[int, Trained | Exception]:
    """Step until every lane is at its last finish line, publishing at each, and saving when a signal asks to stop."""
    lanes, results = loop.lanes, dict[int, Trained | Exception]()
    started, first_steps = time.perf_counter(), [lane.step for lane in lanes]
    alone, stop = processes()[1] == 1, 0
    # steps at which a lane has something to write, once each
    due = [{line.steps for line in lines} | _checkpoint_steps(lane) for lane, lines in zip(lanes, courses, strict=True)]
    due = [{step for step in steps if step > lane.step} for lane, steps in zip(lanes, due, strict=True)]
    try:
        while any(lane.running for lane in lanes) and not stop:
            losses_read = loop.microbatch()
            for slot, lane in enumerate(lanes):
                if lane.step not in due[slot] or lane.micro % lane.train.grad_accum:
                    continue
                due[slot].discard(lane.step)
                loop.flush()
                if lane.diverged_at is None:
                    cost = {
                        "seconds": time.perf_counter() - started,
                        "seconds_cover_steps": lane.step - first_steps[slot],
                    }
                    results |= _arrive(lane, courses[slot], model, cost)
            # several processes must stop at one step; they agree on it where they wait for the device anyway
            if alone or losses_read:
                stop = largest_over_processes(signals.received or 0, model.device)
        loop.flush()
    except KeyboardInterrupt:
        # a second Ctrl-C: the user will not wait for a checkpoint; the last one stays
        raise Interrupted(signal.SIGINT, "stopped at once; the last checkpoint is kept") from None
    if stop and any(lane.running for lane in lanes):
        loop.to_step_boundary()
        for lane, lines in zip(lanes, courses, strict=True):
            if lane.running:
                _save_state(lane, lines[-1].entry)
        steps = ", ".join(f"{lane.step} of {lane.steps}" for lane in lanes)
        raise Interrupted(stop, f"training stopped at step {steps}; the same command goes on from there")
    for lane, lines in zip(lanes, courses, strict=True):
        if lane.diverged_at is not None:
            results |= {line.number: _diverged(lane, line) for line in lines if line.number not in results}
    return results


def _checkpoint_steps(lane: Lane) -> set[int]:
    every = lane.train.checkpoint_every
    return set(range(every, lane.steps, every)) if every else set()


def _arrive(lane: Lane, lines: Sequence[_Line], model: Model, cost: dict[str, float]) -> dict[int, Trained | Exception]:
    """Write what is due at a lane's step: a checkpoint for the runs that go on, the result of one that ends here."""
    # first the runs that end here: a state saved at this step could not bring their adapter back
    results: dict[int, Trained | Exception] = {
        line.number: _finish(lane, line, model, cost) for line in lines if line.steps == lane.step
    }
    if _is_main() and lane.running and lane.step in _checkpoint_steps(lane):
        for line in lines:
            if line.steps > lane.step:
                path = line.entry.folder / "checkpoints" / f"step_{lane.step:06d}.safetensors"
                lora.save(path, lane.adapter, model, _provenance(line.task, lane.step, model))
        _save_state(lane, lines[-1].entry)
    return results


def _is_main() -> bool:
    return processes()[0] == 0


def _save_state(lane: Lane, entry: Entry) -> None:
    """Write what resuming needs, atomically."""
    if not _is_main():
        return
    state = io.BytesIO()
    torch.save(lane.state(), state)
    write_atomic(entry.folder / _STATE, state.getvalue())


def _provenance(task: Task, step: int, model: Model) -> dict[str, Any]:
    """What a LoRA file tells of its making; nothing that would differ from one making to the next."""
    made_with = provenance.collect(model.device)
    return {
        "inputs": inputs_of(task, model),
        "config": plain(replace(task.config, dataset=replace(task.config.dataset, path=None, root=None), store=None)),
        "step": step,
        "model": model.name,
        "provenance": {name: made_with[name] for name in ("dbexp", "git", "packages", "python", "device")},
    }


def _finish(lane: Lane, line: _Line, model: Model, cost: dict[str, float]) -> Trained:
    """Write a run's result and publish it."""
    folder = line.entry.folder
    if _is_main():
        lora.save(folder / "lora.safetensors", lane.adapter, model, _provenance(line.task, lane.step, model))
        history = lane.history[: line.steps]
        write_atomic(folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        record = {"steps": lane.step, **cost, "parameters": lora.parameter_count(lane.adapter)}
        write_atomic(folder / "train.json", json.dumps(record, indent=1))
        (folder / _STATE).unlink(missing_ok=True)
        line.entry.publish()
    wait_for_everyone()
    return _result(line.entry.place)


def _diverged(lane: Lane, line: _Line) -> TrainingDiverged:
    """What to tell of a run that did not reach its finish line; what was good of it stays."""
    folder = line.entry.folder
    kept = [path for _, path in iterate_checkpoints(folder)]
    last = f"last good checkpoint: {kept[-1]}" if kept else "no checkpoint was made before"
    message = (
        f"the loss became NaN or infinite at step {lane.diverged_at} of {line.steps} (train.lr={lane.train.lr:g}); "
        f"lower train.lr or model.precision=fp32. {last}. To train it again with the same settings delete {folder}"
    )
    if _is_main():
        marker = {"step": lane.diverged_at, "message": message}
        write_atomic(folder / _DIVERGED, json.dumps(marker, indent=1, ensure_ascii=False))
    return TrainingDiverged(message, kept[-1] if kept else None)


def _divergence(folder: Path) -> TrainingDiverged | None:
    """What `_diverged` said of an entry when it was trained before, in a pack for instance."""
    marker = folder / _DIVERGED
    if not marker.exists():
        return None
    kept = [path for _, path in iterate_checkpoints(folder)]
    return TrainingDiverged(json.loads(marker.read_text())["message"], kept[-1] if kept else None)


def iterate_checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, LoRA file) of every checkpoint of a run's train folder, in order."""
    for path in sorted((folder / "checkpoints").glob("step_*.safetensors")):
        yield int(path.stem.removeprefix("step_")), path
