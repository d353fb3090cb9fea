"""A training step, from top to bottom: draw, forward pass, loss, backward pass, optimizer step, log.

All lanes of a pack go through the frozen base in one batch, lane after lane, in each lane the subject's rows before
those of its class. Losses are summed over lanes, never averaged, and every lane's rows reach its own adapters alone: no
lane's gradient knows of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dbexp.core import cores
from dbexp.core.progress import Bar
from dbexp.models import GUIDANCE, SIZES, Conditioning, Model
from dbexp.train import loss, packing, step
from dbexp.train.adapter import AdapterSlots
from dbexp.train.batch import Batch, Drawing, Pictures, send
from dbexp.train.graph import Graphs, Results
from dbexp.train.lane import Draw, Lane, Row
from dbexp.train.readings import Readings


class Loop:
    """Microbatches of all running lanes.

    Args:
        lanes: lane k has slot k.
        slots: put into the model.
        model: the frozen base.
        on_rows: told (slot, new history rows).
        steady: few shapes of the batch, at the price of idle rows; see `packing.seats`.
        graphs: records steps; None: their operations are launched one by one.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        slots: AdapterSlots,
        model: Model,
        bar: Bar,
        on_rows: Callable[[int, list[Row]], None],
        *,
        steady: bool = False,
        graphs: Graphs | None = None,
    ) -> None:
        self.lanes = lanes
        self._slots, self._model, self._bar, self._on_rows = slots, model, bar, on_rows
        self._readings = Readings(model.device)
        self._pictures = Pictures([lane.data for lane in lanes], model.device)
        self._drawing = Drawing(lanes, ahead=model.device.type != "cpu")
        self._collated: dict[tuple[tuple[int, tuple[int, int]], ...], Conditioning] = {}
        self._steady, self._graphs = steady, graphs
        self._workers = cores.Workers(1 if steady else cores.count(model.device))
        self._weights = sum(weight.numel() for weight in model.part(model.family.denoiser).parameters())

    def close(self) -> None:
        """Let go of the threads, and of what was recorded."""
        self._workers.close()
        self._drawing.close()
        if self._graphs is not None:
            self._graphs.close()

    def microbatch(self, lanes: Sequence[Lane] | None = None) -> bool:
        """One forward and backward pass, and the optimizer steps that are due.

        Args:
            lanes: those that take part; None: all that are running.

        Returns:
            Whether losses set out for the host.
        """
        active = [slot for slot, lane in enumerate(self.lanes) if lane.running and (lanes is None or lane in lanes)]
        seated = packing.seats([lane.running for lane in self.lanes]) if self._steady and lanes is None else active
        draws = self._drawing.take(active, seated)
        due = [slot for slot in active if self.lanes[slot].due]
        batch = Batch.of(draws, self.lanes, self._pictures, self._model, active)
        # recorded work steps whole batches, and is told who stands; launched one by one, only those step that are due
        stepping = seated if due and self._graphs is not None else due
        all_step = len(stepping) == len(due)

        def work(sent: Batch) -> Results:
            self._slots.refresh()
            per_row = self._passes(draws, sent)  # forward, loss, backward
            self._slots.gather()
            lanes = [self.lanes[slot] for slot in stepping]
            return per_row, step.of_lanes(lanes, sent.rates, None if all_step else sent.stands) if lanes else None

        if self._graphs is None:
            per_row, norms = work(send(batch, self._model.device))
        else:
            shape = tuple(_counts(draws).items()), len(stepping), all_step
            per_row, norms = self._graphs.run(shape, batch, work, self._conditioning(draws))
        for slot in active:
            self.lanes[slot].micro += 1
        self._drawing.begin([slot for slot in active if self.lanes[slot].running])
        spans = [(slot if slot in active else None, *counts) for slot, counts in _counts(draws).items()]
        self._readings.note(per_row, spans, norms, [slot if slot in due else None for slot in stepping])
        return self._log(due)

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
        told = {SIZES: self._pictures.sizes[batch.pictures], GUIDANCE: batch.guidance}
        conditioning = {**self._conditioning(draws), **told}
        self._assign_rows(model.family.denoiser, {slot: len(draw) for slot, draw in draws.items()})
        # in the base's own precision: autocast would have every norm answer in fp32, and cast what it answered back
        prediction = model.predict(model.add_noise(latents, noise, times), times, conditioning)
        return loss.of_rows(model, batch.weights, prediction, latents, noise, times)

    def _conditioning(self, draws: dict[int, Draw]) -> Conditioning:
        """What the denoiser reads beside them. Each prompt is encoded once, however many rows share it."""
        counts = _counts(draws)
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

    def _scaled(self, draws: dict[int, Draw], batch: Batch) -> Batch:
        """A batch whose rows count as much more as the losses of their lanes are scaled up by under fp16."""
        scales = [scale.scale for slot in draws if (scale := self.lanes[slot].loss_scale) is not None]
        if not scales:
            return batch
        return replace(batch, coefficients=batch.coefficients * torch.stack(scales)[batch.owners])

    # -- log --------------------------------------------------------------------------------------------------------

    def _log(self, stepped: Sequence[int]) -> bool:
        """Send losses and norms, which are noted, where a lane is due; whether they were sent.

        What a GPU sends is read a microbatch later: by then it has long been there, and the next one is under way.
        """
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

    def _passes(self, draws: dict[int, Draw], batch: Batch) -> Tensor:
        """Forward and backward passes of lanes; the squared error of every row, fp32 [N].

        On a CPU the cores share the lanes of a small model. Lanes have no gradient in common, so this is a sum with
        zeros for each of them.
        """
        batch = self._scaled(draws, batch)
        text_lanes = any(self.lanes[slot].training.lora.text_encoder for slot in draws)
        if self._workers.count == 1 or text_lanes or max(self._work([draw]) for draw in draws.values()) > cores.SMALL:
            return self._pass((draws, batch))
        groups, start = [], 0
        for slots in cores.split(list(draws), self._workers.count):
            group = {slot: draws[slot] for slot in slots}
            end = start + sum(map(len, group.values()))
            groups.append((group, batch.rows(start, end)))
            start = end
        return torch.cat(self._workers.map(self._pass, groups))

    def _pass(self, group: tuple[dict[int, Draw], Batch]) -> Tensor:
        draws, batch = group
        with cores.as_many_as_pay(self._work(draws.values()), self._model.device):
            per_row = self._forward(draws, batch)
            # no sum over lanes: one whose loss is not finite would reach the others through it
            per_row.backward(batch.coefficients)
        return per_row.detach()

    def _work(self, draws: Iterable[Draw]) -> float:
        """Weights times positions of a forward pass."""
        return float(self._weights * sum(draw.noise.numel() // draw.noise.shape[1] for draw in draws))


def _counts(draws: Mapping[int, Draw]) -> dict[int, tuple[int, int]]:
    """Slot -> rows of its subject and of its class."""
    return {slot: (len(draw.instance), len(draw.prior)) for slot, draw in draws.items()}
