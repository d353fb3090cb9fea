"""A training step, from top to bottom: draw, forward pass, loss, backward pass, optimizer step, log.

All lanes of a pack go through the frozen base in one batch, lane after lane, in each lane the subject's rows before
those of its class. Losses are summed over lanes, never averaged, and every lane's rows reach its own adapters alone: no
lane's gradient knows of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from dbexp.core import cores
from dbexp.core.progress import Bar
from dbexp.models import SIZES, Conditioning, Model
from dbexp.train import loss, step
from dbexp.train.adapter import AdapterSlots
from dbexp.train.lane import Draw, Lane, Row
from dbexp.train.readings import Readings


class Loop:
    """Microbatches of all running lanes.

    Args:
        lanes: lane k has slot k.
        slots: put into the model.
        model: the frozen base.
        on_rows: told (slot, new history rows).
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        slots: AdapterSlots,
        model: Model,
        bar: Bar,
        on_rows: Callable[[int, list[Row]], None],
    ) -> None:
        self.lanes = lanes
        self._slots, self._model, self._bar, self._on_rows = slots, model, bar, on_rows
        self._readings = Readings(model.device)
        self._workers = cores.Workers(cores.count(model.device))
        self._weights = sum(weight.numel() for weight in model.part(model.family.denoiser).parameters())

    def close(self) -> None:
        """Let go of the threads."""
        self._workers.close()

    def microbatch(self, lanes: Sequence[Lane] | None = None) -> bool:
        """One forward and backward pass, and the optimizer steps that are due.

        Args:
            lanes: those that take part; None: all that are running.

        Returns:
            Whether losses set out for the host.
        """
        active = [slot for slot, lane in enumerate(self.lanes) if lane.running and (lanes is None or lane in lanes)]
        draws = {slot: self.lanes[slot].draw() for slot in active}
        self._slots.refresh()
        per_row = self._passes(draws)  # forward, loss, backward
        self._slots.gather()
        due = [slot for slot in active if self.lanes[slot].after_backward()]
        norms = step.of_lanes([self.lanes[slot] for slot in due]) if due else None
        return self._log(per_row, draws, norms, due)

    def to_step_boundary(self) -> None:
        """Finish optimizer steps whose accumulation has begun, so that there is a state to save."""
        while unfinished := [lane for lane in self.lanes if lane.running and not lane.between_steps]:
            self.microbatch(unfinished)
        self.flush()

    # -- forward pass -----------------------------------------------------------------------------------------------

    def _forward(self, draws: dict[int, Draw]) -> Tensor:
        """The weighted squared error of every row, fp32 [N]."""
        model, device = self._model, self._model.device
        times = torch.cat([draw.times for draw in draws.values()]).to(device, non_blocking=True)
        noise = torch.cat([draw.noise for draw in draws.values()]).to(device, non_blocking=True)
        latents = self._latents(draws)
        self._assign_rows(model.family.denoiser, {slot: len(draw) for slot, draw in draws.items()})
        # in the base's own precision: autocast would have every norm answer in fp32, and cast what it answered back
        prediction = model.predict(model.add_noise(latents, noise, times), times, self._conditioning(draws))
        lanes = [self.lanes[slot] for slot, draw in draws.items() for _ in range(len(draw))]
        return loss.of_rows(model, lanes, prediction, latents, noise, times)

    def _latents(self, draws: dict[int, Draw]) -> Tensor:
        """Latents [N, C, h, w] of every row, drawn from the VAE's posterior."""
        noise = torch.cat([draw.latent_noise for draw in draws.values()]).to(self._model.device, non_blocking=True)
        parts = noise.split([len(draw) for draw in draws.values()])
        return torch.cat(
            [self.lanes[slot].latents(draw, part) for (slot, draw), part in zip(draws.items(), parts, strict=True)]
        )

    def _conditioning(self, draws: dict[int, Draw]) -> Conditioning:
        """What the denoiser reads beside them. Each prompt is encoded once, however many rows share it."""
        texts = {slot: self.lanes[slot].data.text for slot in draws}
        text_lanes = [slot for slot in draws if self.lanes[slot].training.lora.text_encoder]
        if text_lanes:
            prompts = {slot: len(self.lanes[slot].training.prompts) for slot in text_lanes}
            for part in self._model.family.text_parts:
                self._assign_rows(part, prompts)
            tokens = self._model.collate([(texts[slot], [1] * prompts[slot]) for slot in text_lanes])
            states, row = self._model.encode(tokens), 0
            for slot, count in prompts.items():
                texts[slot] = {name: value[row : row + count] for name, value in states.items()}
                row += count
        counts = {slot: [len(draw.instance), len(draw.prior)] for slot, draw in draws.items()}
        rows = [(texts[slot], counts[slot][: len(self.lanes[slot].training.prompts)]) for slot in draws]
        sizes = torch.cat([self.lanes[slot].sizes(draw) for slot, draw in draws.items()])
        return {**self._model.collate(rows), SIZES: sizes}

    def _assign_rows(self, part: str, counts: dict[int, int]) -> None:
        """Say which slot's adapters of a part the rows of the next pass belong to."""
        self._slots.rows[part].set([counts.get(slot, 0) for slot in range(len(self.lanes))])

    # -- backward pass ----------------------------------------------------------------------------------------------

    def _backward(self, per_row: Tensor, draws: dict[int, Draw]) -> None:
        """Add every lane's gradient to its own adapters: the sum over lanes has no cross terms."""
        weights = [loss.coefficients(self.lanes[slot], draw) for slot, draw in draws.items()]
        coefficients = torch.tensor([value for row in weights for value in row])
        coefficients = coefficients.to(per_row.device, non_blocking=True)
        if self._model.dtype == torch.float16:
            scales = [
                scale.scale.expand(len(row))
                for slot, row in zip(draws, weights, strict=True)
                if (scale := self.lanes[slot].loss_scale) is not None
            ]
            coefficients = coefficients * torch.cat(scales)
        # a lane whose loss is not finite must not reach the others through the sum
        per_row.backward(coefficients)

    # -- log --------------------------------------------------------------------------------------------------------

    def _log(self, per_row: Tensor, draws: dict[int, Draw], norms: Tensor | None, stepped: Sequence[int]) -> bool:
        """Note losses and norms, still on the device, and send them where a lane is due; whether they were sent.

        What a GPU sends is read a microbatch later: by then it has long been there, and the next one is under way.
        """
        spans = [(slot, len(draw.instance), len(draw.prior)) for slot, draw in draws.items()]
        self._readings.note(per_row, spans, norms, stepped)
        self._bar.advance(len(stepped))
        self._read()
        steppers = [self.lanes[slot] for slot in stepped]
        due = any(lane.step % lane.cfg.log_every == 0 or not lane.running for lane in steppers)
        if due:
            self._readings.send()
            if self._readings.at_hand:
                self._read()
        return due

    def flush(self) -> None:
        """Bring all losses to the host now."""
        self._read()
        self._readings.send()
        self._read()

    def _read(self) -> None:
        """Hand what was sent to its lanes."""
        readings = self._readings.take()
        for slot, reading in readings.items():
            rows = self.lanes[slot].absorb(reading.losses, reading.norms)
            if rows:
                self._on_rows(slot, rows)
        latest = [lane.history[-1] for lane in self.lanes if lane.history and lane.diverged_at is None]
        if readings and latest:
            mean_loss = sum(row["loss"] for row in latest) / len(latest)
            self._bar.advance(0, loss=mean_loss, lr=max(row["lr"] for row in latest))

    # -- on the cores of a CPU --------------------------------------------------------------------------------------

    def _passes(self, draws: dict[int, Draw]) -> Tensor:
        """Forward and backward passes of lanes; the squared error of every row, fp32 [N].

        On a CPU the cores share the lanes of a small model. Lanes have no gradient in common, so this is a sum with
        zeros for each of them.
        """
        text_lanes = any(self.lanes[slot].training.lora.text_encoder for slot in draws)
        if self._workers.count == 1 or text_lanes or max(self._work([draw]) for draw in draws.values()) > cores.SMALL:
            return self._pass(draws)
        groups = [{slot: draws[slot] for slot in slots} for slots in cores.split(list(draws), self._workers.count)]
        return torch.cat(self._workers.map(self._pass, groups))

    def _pass(self, draws: dict[int, Draw]) -> Tensor:
        with cores.as_many_as_pay(self._work(draws.values()), self._model.device):
            per_row = self._forward(draws)
            self._backward(per_row, draws)
        return per_row.detach()

    def _work(self, draws: Iterable[Draw]) -> float:
        """Weights times positions of a forward pass."""
        return float(self._weights * sum(draw.noise[:, 0].numel() for draw in draws))
