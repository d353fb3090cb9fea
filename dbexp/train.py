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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from dbexp import lora, pack
from dbexp.device import autocast, largest_over_processes, mean_of_numbers, processes, wait_for_everyone
from dbexp.errors import Interrupted, TrainingDiverged
from dbexp.lane import Draw, Lane, Row, Task
from dbexp.latents import encode
from dbexp.models import Model
from dbexp.progress import Bar, progress
from dbexp.store import Entry, Store, file_hash, write_atomic

log = logging.getLogger(__name__)

VERSION = 1
_STATE = "state.pt"
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
        For each task its result, or `TrainingDiverged`.

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
        entries: dict[int, Entry] = {}
        same: dict[int, int] = {}
        for i in order:
            twin = next((j for j in entries if keys[j] == keys[i]), None)
            if twin is None:
                entries[i] = claims.enter_context(_claim(store, keys[i]))
            else:
                same[i] = twin
        open_tasks = [i for i, entry in entries.items() if not entry.finished]
        if open_tasks:
            todo = [(i, tasks[i], entries[i]) for i in sorted(open_tasks)]
            results = _train_pack(todo, model, store, on_rows or (lambda number, rows: None))
        for i, entry in entries.items():
            results.setdefault(i, _result(entry.place) if entry.finished else RuntimeError("training did not end"))
        for i, twin in same.items():
            results[i] = results[twin]
    return [results[i] for i in range(len(tasks))]


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
    todo: Sequence[tuple[int, Task, Entry]], model: Model, store: Store, on_rows: OnRows
) -> dict[int, Trained | Exception]:
    """Train every task of a pack and publish its entry."""
    lanes = _prepare(todo, model, store)
    configs = [lane.task.config for lane in lanes]
    ranks = {"unet": max(config.lora.rank for config in configs)}
    if any(lane.trains_text for lane in lanes):
        ranks["text_encoder"] = max(_text_rank(lane) for lane in lanes if lane.trains_text)
    results: dict[int, Trained | Exception] = {}
    cfg = configs[0]
    try:
        with lora.Lanes(model, cfg.lora.sites, len(lanes), ranks) as slots, _Signals() as signals:
            model.enable_gradient_checkpointing(cfg.train.gradient_checkpointing)
            for slot, lane in enumerate(lanes):
                _begin(lane, slot, slots, model, todo[slot][2])
            started = time.perf_counter()
            first_steps = [lane.step for lane in lanes]
            total, done = sum(lane.steps for lane in lanes), sum(first_steps)
            with progress("train", total, done=done) as bar:
                loop = _Loop(lanes, slots, model, bar, lambda slot, rows: on_rows(todo[slot][0], rows))
                _run(loop, todo, model, signals)
            seconds = time.perf_counter() - started
            for slot, lane in enumerate(lanes):
                number, _, entry = todo[slot]
                results[number] = _finish(lane, entry, model, seconds, first_steps[slot])
            if signals.received is not None:
                raise Interrupted(signals.received, "training is done; the same command goes on after it")
    finally:
        model.enable_gradient_checkpointing(False)
    return results


def _text_rank(lane: Lane) -> int:
    config = lane.task.config.lora
    return config.text_encoder_rank or config.rank


def _prepare(todo: Sequence[tuple[int, Task, Entry]], model: Model, store: Store) -> list[Lane]:
    """Encode what never changes, and drop the parts that training does not need."""
    process, count = processes()
    lanes = []
    for _, task, _ in todo:
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


def _begin(lane: Lane, slot: int, slots: lora.Lanes, model: Model, entry: Entry) -> None:
    """Give a lane its slot, and its last checkpoint if there is one."""
    cfg = lane.task.config
    ranks, alphas = {"unet": cfg.lora.rank}, {"unet": cfg.lora.alpha or float(cfg.lora.rank)}
    if lane.trains_text:
        ranks["text_encoder"] = _text_rank(lane)
        alphas["text_encoder"] = cfg.lora.alpha or float(_text_rank(lane))
    adapter = slots.open(slot, ranks, alphas, cfg.seeds.init)
    lane.begin(adapter, model.device, model.dtype)
    state = entry.folder / _STATE
    if state.exists():
        lane.load_state(torch.load(state, map_location=model.device, weights_only=True))
        log.info("train: going on from step %d of %d", lane.step, lane.steps)
    log.info("train: %s parameters", lora.parameter_count(adapter))


def _run(loop: _Loop, todo: Sequence[tuple[int, Task, Entry]], model: Model, signals: _Signals) -> None:
    """Step until every lane is at its finish line, saving on the way and when a signal asks to stop."""
    lanes = loop.lanes
    saved = [lane.step for lane in lanes]
    alone, stop = processes()[1] == 1, 0
    try:
        while any(lane.running for lane in lanes) and not stop:
            losses_read = loop.microbatch()
            for slot, lane in enumerate(lanes):
                every = lane.train.checkpoint_every
                due = (
                    every
                    and lane.step % every == 0
                    and lane.step > saved[slot]
                    and lane.micro % lane.train.grad_accum == 0
                )
                if due and lane.running:
                    loop.flush()
                    if lane.diverged_at is None:
                        _save_checkpoint(lane, todo[slot][2], model)
                        saved[slot] = lane.step
            # several processes must stop at one step; they agree on it where they wait for the device anyway
            if alone or losses_read:
                stop = largest_over_processes(signals.received or 0, model.device)
        loop.flush()
    except KeyboardInterrupt:
        # a second Ctrl-C: the user will not wait for a checkpoint; the last one stays
        raise Interrupted(signal.SIGINT, "stopped at once; the last checkpoint is kept") from None
    if stop and any(lane.running for lane in lanes):
        loop.to_step_boundary()
        for slot, lane in enumerate(lanes):
            if lane.diverged_at is None:
                _save_state(lane, todo[slot][2])
        steps = ", ".join(f"{lane.step} of {lane.steps}" for lane in lanes)
        raise Interrupted(stop, f"training stopped at step {steps}; the same command goes on from there")


def _is_main() -> bool:
    return processes()[0] == 0


def _save_state(lane: Lane, entry: Entry) -> None:
    """Write what resuming needs, atomically."""
    if not _is_main():
        return
    state = io.BytesIO()
    torch.save(lane.state(), state)
    write_atomic(entry.folder / _STATE, state.getvalue())


def _save_checkpoint(lane: Lane, entry: Entry, model: Model) -> None:
    """The state to resume from, and the LoRA as it is now."""
    if not _is_main():
        return
    path = entry.folder / "checkpoints" / f"step_{lane.step:06d}.safetensors"
    lora.save(path, lane.adapter, model, _provenance(lane, model))
    _save_state(lane, entry)


def _provenance(lane: Lane, model: Model) -> dict[str, Any]:
    return {"inputs": inputs_of(lane.task, model), "step": lane.step, "model": model.name}


def _finish(lane: Lane, entry: Entry, model: Model, seconds: float, first_step: int) -> Trained | Exception:
    """Write a lane's result and publish it; of a diverged lane, keep what was good."""
    if lane.diverged_at is not None:
        kept = sorted((entry.folder / "checkpoints").glob("*.safetensors"))
        last = f"last good checkpoint: {kept[-1]}" if kept else "no checkpoint was made before"
        return TrainingDiverged(
            f"the loss became NaN or infinite at step {lane.diverged_at} of {lane.steps} (train.lr="
            f"{lane.train.lr:g}); lower train.lr or model.precision=fp32. {last}"
        )
    if _is_main():
        lora.save(entry.folder / "lora.safetensors", lane.adapter, model, _provenance(lane, model))
        write_atomic(entry.folder / "history.jsonl", "".join(json.dumps(row) + "\n" for row in lane.history))
        record = {
            "steps": lane.step,
            "seconds": seconds,
            "seconds_cover_steps": lane.step - first_step,
            "parameters": lora.parameter_count(lane.adapter),
        }
        write_atomic(entry.folder / "train.json", json.dumps(record, indent=1))
        (entry.folder / _STATE).unlink(missing_ok=True)
        entry.publish()
    wait_for_everyone()
    return _result(entry.place)


# -- the loop ---------------------------------------------------------------------------------------------------------


class _Loop:
    """Microbatches of all running lanes, through the frozen base in one batch.

    Args:
        lanes: lane k has slot k.
        on_rows: told (slot, new history rows).
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        slots: lora.Lanes,
        model: Model,
        bar: Bar,
        on_rows: Callable[[int, list[Row]], None],
    ) -> None:
        self.lanes = lanes
        self._slots, self._model, self._bar, self._on_rows = slots, model, bar, on_rows
        self._pending: list[tuple[Tensor, list[tuple[int, int, int]]]] = []

    def microbatch(self, lanes: Sequence[Lane] | None = None) -> bool:
        """One forward and backward pass, and the optimizer steps that are due.

        Args:
            lanes: those that take part; None: all that are running.

        Returns:
            Whether losses were read from the device.
        """
        active = [slot for slot, lane in enumerate(self.lanes) if lane.running and (lanes is None or lane in lanes)]
        draws = {slot: self.lanes[slot].draw() for slot in active}
        per_row = self._losses(draws)
        self._backward(per_row, draws)
        spans = [(slot, len(draw.instance), len(draw.prior)) for slot, draw in draws.items()]
        self._pending.append((per_row.detach(), spans))
        stepped = [self.lanes[slot] for slot in active if self.lanes[slot].after_backward()]
        self._bar.advance(len(stepped))
        due = any(lane.step % lane.train.log_every == 0 or not lane.running for lane in stepped)
        if due:
            self.flush()
        return due

    def to_step_boundary(self) -> None:
        """Finish optimizer steps whose accumulation has begun, so that there is a state to save."""
        while unfinished := [lane for lane in self.lanes if lane.running and lane.micro % lane.train.grad_accum]:
            self.microbatch(unfinished)
        self.flush()

    def flush(self) -> None:
        """Bring pending losses to the host: one wait for the device for many steps."""
        if not self._pending:
            return
        values = torch.cat([per_row for per_row, _ in self._pending]).tolist()
        slots: list[int] = []
        means: list[float] = []  # instance, class, instance, class, ...
        start = 0
        for _, spans in self._pending:
            for slot, instances, priors in spans:
                instance, prior = values[start : start + instances], values[start + instances :][:priors]
                slots.append(slot)
                means += [sum(instance) / instances, sum(prior) / priors if priors else 0.0]
                start += instances + priors
        self._pending = []
        means = mean_of_numbers(means, self._model.device)
        losses: dict[int, list[tuple[float, float]]] = {}
        for slot, pair in zip(slots, zip(means[::2], means[1::2], strict=True), strict=True):
            losses.setdefault(slot, []).append(pair)
        for slot, pairs in losses.items():
            rows = self.lanes[slot].absorb(pairs)
            if rows:
                self._on_rows(slot, rows)
        shown = [lane.history[-1] for lane in self.lanes if lane.history and lane.diverged_at is None]
        if shown:
            mean_loss = sum(row["loss"] for row in shown) / len(shown)
            self._bar.advance(0, loss=mean_loss, lr=max(row["lr"] for row in shown))

    def _losses(self, draws: dict[int, Draw]) -> Tensor:
        """Squared error of every row, fp32 [N], weighted by min-SNR where a lane asks for it."""
        model, lanes, device = self._model, self.lanes, self._model.device
        timesteps = torch.cat([draw.timesteps for draw in draws.values()]).to(device, non_blocking=True)
        noise = torch.cat([draw.noise for draw in draws.values()]).to(device, non_blocking=True)
        latent_noise = torch.cat([draw.latent_noise for draw in draws.values()]).to(device, non_blocking=True)
        sizes = [len(draw.timesteps) for draw in draws.values()]
        parts = zip(draws.items(), latent_noise.split(sizes), strict=True)
        latents = torch.cat([lanes[slot].latents(draw, part) for (slot, draw), part in parts])
        counts = [len(draws[slot].timesteps) if slot in draws else 0 for slot in range(len(lanes))]
        self._slots.rows["unet"].set(counts)
        with autocast(device, model.dtype):
            text = self._text(draws)
            prediction = model.predict(model.add_noise(latents, noise, timesteps), timesteps, text)
        target = model.target(latents, noise, timesteps)
        per_row = (prediction.float() - target).square().flatten(1).mean(1)
        gammas = [
            gamma for slot, size in zip(draws, sizes, strict=True) for gamma in [lanes[slot].train.min_snr_gamma] * size
        ]
        if any(gamma is not None for gamma in gammas):
            rows = [
                model.loss_weight(timesteps[i : i + 1], gamma) if gamma is not None else torch.ones(1, device=device)
                for i, gamma in enumerate(gammas)
            ]
            per_row = per_row * torch.cat(rows)
        return per_row

    def _text(self, draws: dict[int, Draw]) -> Tensor:
        """Text states [N, L, D] of every row. Each prompt is encoded once, however many rows share it."""
        lanes = self.lanes
        learning = [slot for slot in draws if lanes[slot].trains_text]
        encoded: dict[int, Tensor] = {}
        if learning:
            counts = [len(lanes[slot].texts) if slot in learning else 0 for slot in range(len(lanes))]
            self._slots.rows["text_encoder"].set(counts)
            states = self._model.encode_tokens(torch.cat([lanes[slot].texts for slot in learning]))
            split = states.split([len(lanes[slot].texts) for slot in learning])
            encoded = dict(zip(learning, split, strict=True))
        rows = []
        for slot, draw in draws.items():
            states = encoded.get(slot, lanes[slot].texts)
            rows.append(states[:1].expand(len(draw.instance), -1, -1))
            if draw.prior:
                rows.append(states[1:].expand(len(draw.prior), -1, -1))
        dtype = torch.promote_types(rows[0].dtype, rows[-1].dtype)
        return torch.cat([row.to(dtype) for row in rows])

    def _backward(self, per_row: Tensor, draws: dict[int, Draw]) -> None:
        """Add every lane's gradient to its own adapters: the sum over lanes has no cross terms."""
        weights = [self.lanes[slot].coefficients(draw) for slot, draw in draws.items()]
        coefficients = torch.tensor([value for row in weights for value in row])
        coefficients = coefficients.to(per_row.device, non_blocking=True)
        if self._model.dtype == torch.float16:
            one = torch.ones((), device=per_row.device)
            scales = [
                self.lanes[slot].scaler.scale(one).expand(len(row)) for slot, row in zip(draws, weights, strict=True)
            ]
            coefficients = coefficients * torch.cat(scales)
        # a lane whose loss is not finite must not reach the others through the sum
        per_row.backward(coefficients)


class _Signals:
    """Inside the block the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once.

    Outside the main thread Python allows no handlers, and signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        log.warning("train: %s: finishing this step and saving", signal.Signals(signum).name)


def iterate_checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, LoRA file) of every checkpoint of a run's train folder, in order."""
    for path in sorted((folder / "checkpoints").glob("step_*.safetensors")):
        yield int(path.stem.removeprefix("step_")), path
