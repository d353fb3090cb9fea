"""Train LoRAs: one loop over a pack of K >= 1 lanes on one frozen base (DreamBooth, arXiv 2208.12242, section 3.2).

The loss of a lane is mean(instance) + weight * mean(class); losses are summed over lanes, never averaged, so no lane's
gradient knows of another. A lane's result is the same alone or in a pack.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dbexp.core.device import largest_over_processes, processes, wait_for_everyone
from dbexp.core.errors import Interrupted
from dbexp.core.hashing import key_of
from dbexp.core.progress import progress
from dbexp.core.store import Entry, Store
from dbexp.models import Model
from dbexp.train import adapter, packing, resume
from dbexp.train.lane import Lane, Row, Training
from dbexp.train.latents import encode
from dbexp.train.loop import Loop, Signals
from dbexp.train.result import (
    FinishLine,
    Trained,
    checkpoint,
    course_of,
    diverged,
    divergence,
    finish,
    inputs_of,
    is_main,
    iterate_checkpoints,
    result_of,
)

__all__ = ["OnRows", "Trained", "inputs_of", "iterate_checkpoints", "train"]

log = logging.getLogger(__name__)

OnRows = Callable[[int, Sequence[Row]], None]
"""Called with (task number, new history rows) whenever losses have come from the device."""


def train(
    tasks: Sequence[Training], model: Model, store: Store, on_rows: OnRows | None = None
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
    agreed = packing.shared(tasks[0].config)
    if any(packing.shared(task.config) != agreed for task in tasks):
        raise ValueError("the runs of a pack must agree in " + ", ".join(packing.MUST_AGREE))
    keys = [inputs_of(task, model) for task in tasks]
    results: dict[int, Trained | Exception] = {}
    with contextlib.ExitStack() as claims:
        # in the order of their places, so that two sweeps that want the same entries never wait for each other
        order = sorted(range(len(tasks)), key=lambda i: store.path("train", keys[i]))
        first = {key_of(keys[i]): i for i in reversed(order)}
        entries = {i: claims.enter_context(_claim(store, keys[i])) for i in order if i == first[key_of(keys[i])]}
        lines = [FinishLine(i, tasks[i], entry) for i, entry in sorted(entries.items()) if not entry.finished]
        results |= {line.number: error for line in lines if (error := divergence(line.entry.folder))}
        lines = [line for line in lines if line.number not in results]
        if lines:
            shared: dict[str, list[FinishLine]] = {}
            for line in sorted(lines, key=lambda line: line.steps):
                shared.setdefault(key_of(course_of(keys[line.number])), []).append(line)
            courses = [_Course(key, tuple(members)) for key, members in shared.items()]
            # the longest first: lanes that end leave no gap between those that go on, which therefore share the same
            # products, in the same order, whether the pack goes on at once or is resumed without those that ended
            courses.sort(key=lambda course: (-course.passes, course.key))
            results |= _train_pack(courses, model, store, on_rows or (lambda number, rows: None))
        for i, entry in entries.items():
            results.setdefault(i, result_of(entry.path) if entry.finished else RuntimeError("training did not end"))
    return [results[first[key_of(key)]] for key in keys]


@dataclass(frozen=True)
class _Course:
    """The finish lines of a lane, nearest first."""

    key: str
    lines: tuple[FinishLine, ...]

    @property
    def task(self) -> Training:
        """Of the lane: that of its last finish line."""
        return self.lines[-1].task

    @property
    def passes(self) -> int:
        """Microbatches until the end."""
        return self.task.config.train.steps * self.task.config.train.grad_accum


@contextlib.contextmanager
def _claim(store: Store, inputs: dict[str, Any]) -> Iterator[Entry]:
    """Hold an entry. Of several processes that train it together the main one holds it for all."""
    if is_main():
        with store.hold("train", inputs) as entry:
            wait_for_everyone()
            yield entry
    else:
        wait_for_everyone()
        yield store.peek("train", inputs)


# -- a pack -----------------------------------------------------------------------------------------------------------


def _train_pack(
    courses: Sequence[_Course], model: Model, store: Store, on_rows: OnRows
) -> dict[int, Trained | Exception]:
    """Train a pack, lane k in slot k, and publish the entry of every finish line."""
    lanes = prepare([course.task for course in courses], model, store)
    entries = tuple(
        tuple(line.entry.path.relative_to(store.root).as_posix() for line in course.lines) for course in courses
    )
    begun = resume.PackState(tuple(course.key for course in courses), entries, _ranks(lanes))
    begun, states = resume.resume(store, begun, model.device)
    try:
        with open_slots(lanes, model, begun.ranks) as slots, Signals() as signals:
            for slot, lane in enumerate(lanes):
                _begin(lane, slot, slots, model, courses[slot], states.get(courses[slot].key))
            if is_main():
                begun.begin(store)
            total, done = sum(lane.steps for lane in lanes), sum(lane.step for lane in lanes)
            with progress("train", total, done=done) as bar:

                def tell(slot: int, rows: Sequence[Row]) -> None:
                    for line in courses[slot].lines:
                        on_rows(line.number, [row for row in rows if row["step"] <= line.steps])

                for slot, lane in enumerate(lanes):
                    if lane.history:  # of a lane that goes on: whoever is told gets every row, and in order
                        tell(slot, lane.history)

                def save() -> None:
                    if is_main():
                        begun.save(store, [lane.state() for lane in lanes])

                with contextlib.closing(Loop(lanes, slots, model, bar, tell)) as loop:
                    results = _run(loop, courses, model, signals, save)
            if is_main():
                begun.end(store)
            if signals.received is not None:
                raise Interrupted(signals.received, "training is done; the same command goes on after it")
    finally:
        if is_main():
            begun.give_up(store)
        model.enable_gradient_checkpointing(False)
    return results


def _text_rank(lane: Lane) -> int:
    config = lane.task.config.lora
    return config.text_encoder_rank or config.rank


def _ranks(lanes: Sequence[Lane]) -> dict[str, int]:
    """part -> rank that slots for these lanes must have room for."""
    ranks = {"unet": max(lane.task.config.lora.rank for lane in lanes)}
    if any(lane.trains_text for lane in lanes):
        ranks["text_encoder"] = max(_text_rank(lane) for lane in lanes if lane.trains_text)
    return ranks


def open_slots(lanes: Sequence[Lane], model: Model, ranks: Mapping[str, int] | None = None) -> adapter.AdapterSlots:
    """Slots for lanes, each empty still; gradient checkpointing is switched as the lanes want it.

    Args:
        lanes: one for each slot.
        model: the frozen base.
        ranks: part -> rank that slots have room for; None: as the lanes need.
    """
    cfg = lanes[0].task.config
    slots = adapter.AdapterSlots(model, cfg.lora.sites, len(lanes), ranks or _ranks(lanes))
    model.enable_gradient_checkpointing(cfg.train.gradient_checkpointing)
    return slots


def enter_slot(lane: Lane, slot: int, slots: adapter.AdapterSlots, model: Model) -> None:
    """Give a lane its slot, with fresh weights."""
    cfg = lane.task.config
    ranks, alphas = {"unet": cfg.lora.rank}, {"unet": cfg.lora.alpha or float(cfg.lora.rank)}
    if lane.trains_text:
        ranks["text_encoder"] = _text_rank(lane)
        alphas["text_encoder"] = cfg.lora.alpha or float(_text_rank(lane))
    lane.begin(slots.open(slot, ranks, alphas, cfg.seeds.init), model.device, model.dtype)


def prepare(tasks: Sequence[Training], model: Model, store: Store) -> list[Lane]:
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


def _begin(
    lane: Lane, slot: int, slots: adapter.AdapterSlots, model: Model, course: _Course, state: Mapping[str, Any] | None
) -> None:
    """Give a lane its slot, and its last state if there is one that its nearest finish line can be reached from."""
    enter_slot(lane, slot, slots, model)
    if state is not None and state["micro"] <= course.lines[0].steps * lane.train.grad_accum:
        lane.load_state(state)
        log.info("train: going on from step %d of %d", lane.step, lane.steps)
    counts = adapter.parameter_count(lane.adapter).items()
    log.info("train: %s", " and ".join(f"{count:,} parameters of the {part}" for part, count in counts))


def _run(
    loop: Loop, courses: Sequence[_Course], model: Model, signals: Signals, save: Callable[[], None]
) -> dict[int, Trained | Exception]:
    """Step until every lane is at its last finish line, publishing at each; `save` keeps the state of all lanes."""
    lanes, results = loop.lanes, dict[int, Trained | Exception]()
    started, first_steps = time.perf_counter(), [lane.step for lane in lanes]
    alone, stop = processes()[1] == 1, 0
    due = [_due_steps(lane, course) for lane, course in zip(lanes, courses, strict=True)]
    try:
        while True:
            if _arrived(lanes, due):
                if not alone:  # half accumulated gradients are not the same in every process
                    loop.to_step_boundary()
                loop.flush()
                for slot in _arrived(lanes, due):
                    due[slot].discard(lanes[slot].step)
                    if lanes[slot].step in _checkpoint_steps(lanes[slot]):
                        checkpoint(lanes[slot], courses[slot].lines, model)
                ending = [
                    (slot, line)
                    for slot, course in enumerate(courses)
                    for line in course.lines
                    if line.number not in results and line.steps == lanes[slot].step and _at_step(lanes[slot])
                ]
                # before any run is published: those that go on must find all lanes as they are now, not as they were
                # before, or their batches would be composed otherwise than without an interruption
                if sum(len(course.lines) for course in courses) - len(results) > 1 or not ending:
                    save()  # all but the last run of all, whose end needs no state
                for slot, line in ending:
                    seconds, steps = time.perf_counter() - started, lanes[slot].step - first_steps[slot]
                    cost = {"seconds": seconds, "seconds_cover_steps": steps}
                    results[line.number] = finish(lanes[slot], line, model, cost)
            if stop or not any(lane.running for lane in lanes):
                break
            losses_read = loop.microbatch()
            # several processes must stop at one step; they agree on it where they wait for the device anyway
            if alone or losses_read:
                stop = largest_over_processes(signals.received or 0, model.device)
        loop.flush()
    except KeyboardInterrupt:
        # a second Ctrl-C: the user will not wait for a checkpoint; the last one stays
        raise Interrupted(signal.SIGINT, "stopped at once; the last checkpoint is kept") from None
    if stop and any(lane.running for lane in lanes):
        if not alone:
            loop.to_step_boundary()
        save()
        reached = ", ".join(f"{lane.step} of {lane.steps}" for lane in lanes)
        raise Interrupted(stop, f"training stopped at step {reached}; the same command goes on from there")
    for lane, course in zip(lanes, courses, strict=True):
        if lane.diverged_at is not None:
            results |= {line.number: diverged(lane, line) for line in course.lines if line.number not in results}
    return results


def _due_steps(lane: Lane, course: _Course) -> set[int]:
    """Steps at which a lane has something to write, once each. It may begin at a finish line: a state was saved there,
    and the process killed before the run was published."""
    checkpoints = {step for step in _checkpoint_steps(lane) if step > lane.step}
    return checkpoints | {line.steps for line in course.lines if line.steps >= lane.step}


def _at_step(lane: Lane) -> bool:
    """Whether a lane stands, in good health, between two optimizer steps."""
    return lane.diverged_at is None and lane.micro % lane.train.grad_accum == 0


def _arrived(lanes: Sequence[Lane], due: Sequence[set[int]]) -> list[int]:
    """Slots of the lanes that have something to write now."""
    return [slot for slot, lane in enumerate(lanes) if lane.step in due[slot] and _at_step(lane)]


def _checkpoint_steps(lane: Lane) -> set[int]:
    every = lane.train.checkpoint_every
    return set(range(every, lane.steps, every)) if every else set()
