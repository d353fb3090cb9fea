"""The training loop: microbatches of all lanes of a pack through the frozen base in one batch.

Losses are summed over lanes, never averaged, and every lane's rows reach its own adapters alone: no lane's gradient
knows of another.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from dbexp.core import cores
from dbexp.core.device import autocast, mean_of_numbers
from dbexp.core.progress import Bar
from dbexp.models import Model
from dbexp.train import adapter
from dbexp.train.lane import Draw, Lane, Row

log = logging.getLogger(__name__)


class Loop:
    """Microbatches of all running lanes, through the frozen base in one batch.

    Args:
        lanes: lane k has slot k.
        on_rows: told (slot, new history rows).
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        slots: adapter.AdapterSlots,
        model: Model,
        bar: Bar,
        on_rows: Callable[[int, list[Row]], None],
    ) -> None:
        self.lanes = lanes
        self._slots, self._model, self._bar, self._on_rows = slots, model, bar, on_rows
        self._pending: list[tuple[Tensor, list[tuple[int, int, int]]]] = []
        self._workers = cores.Workers(cores.count(model.device))
        self._weights = sum(weight.numel() for weight in model.part("unet").parameters())

    def close(self) -> None:
        """Let go of the threads."""
        self._workers.close()

    def microbatch(self, lanes: Sequence[Lane] | None = None) -> bool:
        """One forward and backward pass, and the optimizer steps that are due.

        Args:
            lanes: those that take part; None: all that are running.

        Returns:
            Whether losses were read from the device.
        """
        active = [slot for slot, lane in enumerate(self.lanes) if lane.running and (lanes is None or lane in lanes)]
        draws = {slot: self.lanes[slot].draw() for slot in active}
        per_row = self._passes(draws)
        spans = [(slot, len(draw.instance), len(draw.prior)) for slot, draw in draws.items()]
        self._pending.append((per_row, spans))
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

    def _passes(self, draws: dict[int, Draw]) -> Tensor:
        """Forward and backward passes of lanes; the squared error of every row, fp32 [N].

        On a CPU the cores share the lanes of a small model. Lanes have no gradient in common, so this is a sum with
        zeros for each of them.
        """
        apart = self._workers.count > 1 and not any(self.lanes[slot].trains_text for slot in draws)
        if not apart or max(self._work([draw]) for draw in draws.values()) > cores.SMALL:
            return self._pass(draws)
        groups = [{slot: draws[slot] for slot in slots} for slots in cores.split(list(draws), self._workers.count)]
        return torch.cat(self._workers.map(self._pass, groups))

    def _pass(self, draws: dict[int, Draw]) -> Tensor:
        with cores.as_many_as_pay(self._work(draws.values()), self._model.device):
            per_row = self._losses(draws)
            self._backward(per_row, draws)
        return per_row.detach()

    def _work(self, draws: Iterable[Draw]) -> float:
        """Weights times positions of a forward pass."""
        return float(self._weights * sum(draw.noise[:, 0].numel() for draw in draws))

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


class Signals:
    """Inside the block the first SIGINT or SIGTERM is noted; a second SIGINT interrupts at once.

    Outside the main thread Python allows no handlers, and signals keep their usual effect.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}
        self._message: threading.Thread | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        if self._message is not None:
            self._message.join()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        # Python calls this between any two instructions, also halfway through a line that the loop itself logs, which
        # no second one may enter; a thread waits for its turn.
        said = ("train: %s: finishing this step and saving", signal.Signals(signum).name)
        self._message = threading.Thread(target=log.warning, args=said)
        self._message.start()
