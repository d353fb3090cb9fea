"""A training step, from top to bottom: draw, forward pass, loss, backward pass, optimizer step, log.

All lanes of a pack go through the frozen base in one batch, lane after lane, in each lane the subject's rows before
those of its class. Losses are summed over lanes, never averaged, and every lane's rows reach its own adapters alone: no
lane's gradient knows of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dbexp.core import cores
from dbexp.core.progress import Bar
from dbexp.models import SIZES, Conditioning, Model
from dbexp.train import loss, step
from dbexp.train.adapter import AdapterSlots
from dbexp.train.batch import Batch, Drawing, Pictures
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
        self._pictures = Pictures([lane.data for lane in lanes], model.device)
        self._drawing = Drawing(lanes, ahead=model.device.type != "cpu")
        self._collated: dict[tuple[tuple[int, tuple[int, int]], ...], Conditioning] = {}
        self._workers = cores.Workers(cores.count(model.device))
        self._weights = sum(weight.numel() for weight in model.part(model.family.denoiser).parameters())

    def close(self) -> None:
        """Let go of the threads."""
        self._workers.close()
        self._drawing.close()

    def microbatch(self, lanes: Sequence[Lane] | None = None) -> bool:
        """One forward and backward pass, and the optimizer steps that are due.

        Args:
            lanes: those that take part; None: all that are running.

        Returns:
            Whether losses set out for the host.
        """
        active = [slot for slot, lane in enumerate(self.lanes) if lane.running and (lanes is None or lane in lanes)]
        draws = self._drawing.take(active)
        self._slots.refresh()
        per_row = self._passes(draws)  # forward, loss, backward
        self._slots.gather()
        due = [slot for slot in active if self.lanes[slot].after_backward()]
        norms = step.of_lanes([self.lanes[slot] for slot in due]) if due else None
        self._drawing.begin([slot for slot in active if self.lanes[slot].running])
        return self._log(per_row, draws, norms, due)

    def to_step_boundary(self) -> None:
        """Finish optimizer steps whose accumulation has begun, so that there is a state to save."""
        while unfinished := [lane for lane in self.lanes if lane.running and not lane.between_steps]:
            self.microbatch(unfinished)
        self.flush()

    # -- forward pass -----------------------------------------------------------------------------------------------

    def _forward(self, draws: dict[int, Draw], batch: Batch) -> Tensor:
        """The weighted squared error of every row, fp32 [N]."""
        model, times, noise = self._model, batch.times, batch.noise
        latents = self._pictures.latents(batch)
        conditioning = {**self._conditioning(draws), SIZES: self._pictures.sizes[batch.pictures]}
        self._assign_rows(model.family.denoiser, {slot: len(draw) for slot, draw in draws.items()})
        # in the base's own precision: autocast would have every norm answer in fp32, and cast what it answered back
        prediction = model.predict(model.add_noise(latents, noise, times), times, conditioning)
        return loss.of_rows(model, batch.weights, prediction, latents, noise, times)

    def _conditioning(self, draws: dict[int, Draw]) -> Conditioning:
        """What the denoiser reads beside them. Each prompt is encoded once, however many rows share it."""
        counts = {slot: (len(draw.instance), len(draw.prior)) for slot, draw in draws.items()}
        text_lanes = [slot for slot in draws if self.lanes[slot].training.lora.text_encoder]
        if text_lanes:
            return self._collate(counts, self._encoded(text_lanes))
        key = tuple(counts.items())
        collated = self._collated.get(key)
        if collated is None:  # texts never change where their encoder is frozen
            collated = self._collate(counts, {})
            self._collated = {key: collated}  # of the last rows alone: they are most often the next
        return collated

    def _collate(self, counts: Mapping[int, tuple[int, int]], encoded: Mapping[int, Conditioning]) -> Conditioning:
        """Texts of all rows: those in `encoded`, and those of lanes whose text never changes."""
        lanes = {slot: self.lanes[slot] for slot in counts}
        return self._model.collate(
            [
                (encoded.get(slot, lane.data.text), counts[slot][: len(lane.training.prompts)])
                for slot, lane in lanes.items()
            ]
        )

    def _encoded(self, slots: Sequence[int]) -> dict[int, Conditioning]:
        """Slot -> conditioning of its prompts, by a text encoder that is trained."""
        prompts = {slot: len(self.lanes[slot].training.prompts) for slot in slots}
        for part in self._model.family.text_parts:
            self._assign_rows(part, prompts)
        tokens = self._model.collate([(self.lanes[slot].data.text, [1] * prompts[slot]) for slot in slots])
        states, texts, row = self._model.encode(tokens), dict[int, Conditioning](), 0
        for slot, count in prompts.items():
            texts[slot] = {name: value[row : row + count] for name, value in states.items()}
            row += count
        return texts

    def _assign_rows(self, part: str, counts: dict[int, int]) -> None:
        """Say which slot's adapters of a part the rows of the next pass belong to."""
        self._slots.rows[part].set([counts.get(slot, 0) for slot in range(len(self.lanes))])

    # -- backward pass ----------------------------------------------------------------------------------------------

    def _backward(self, per_row: Tensor, draws: dict[int, Draw], batch: Batch) -> None:
        """Add every lane's gradient to its own adapters: the sum over lanes has no cross terms."""
        coefficients = batch.coefficients
        scales = [scale.scale for slot in draws if (scale := self.lanes[slot].loss_scale) is not None]
        if scales:
            coefficients = coefficients * torch.stack(scales)[batch.owners]
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
            batch = Batch.of(draws, self.lanes, self._pictures, self._model)
            per_row = self._forward(draws, batch)
            self._backward(per_row, draws, batch)
        return per_row.detach()

    def _work(self, draws: Iterable[Draw]) -> float:
        """Weights times positions of a forward pass."""
        return float(self._weights * sum(draw.noise[:, 0].numel() for draw in draws))
