"""Losses and gradient norms on their way from the device to the host: read rarely, and without emptying its queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dbexp.core.device import host_buffer, mean_of_numbers

Span = tuple[int | None, int, int]
"""(slot, instance rows, class rows) of a microbatch, in the order of its rows. None: of a lane that has ended, whose
numbers nobody reads."""


@dataclass
class Reading:
    """What came of one lane.

    Attributes:
        losses: (instance, class) of each microbatch, means over rows and processes.
        norms: of the gradient of each optimizer step.
    """

    losses: list[tuple[float, float]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)


@dataclass
class _Noted:
    values: Tensor
    spans: Sequence[Span]
    slots: Sequence[int | None]


class Readings:
    """Numbers that were noted and not yet taken.

    Args:
        device: where they are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._noted: list[_Noted] = []
        self._sent: tuple[Tensor, torch.cuda.Event | None, list[_Noted]] | None = None

    def note(self, per_row: Tensor, spans: Sequence[Span], norms: Tensor | None, slots: Sequence[int | None]) -> None:
        """Remember numbers that stay on the device as yet.

        Args:
            per_row: losses of a microbatch [N].
            spans: whose rows they are.
            norms: of the gradients of lanes [n]; None: nobody made a step.
            slots: of these; None: of a lane that made no step.
        """
        # a copy: a recorded step writes them to the same place again
        values = per_row.clone() if norms is None else torch.cat([per_row, norms])
        self._noted.append(_Noted(values, spans, slots))

    def send(self) -> None:
        """Let everything noted set out for the host. What was sent before must have been taken."""
        if not self._noted:
            return
        values, noted, self._noted = torch.cat([each.values for each in self._noted]), self._noted, []
        event = None
        if self._device.type == "cuda":
            there, values = values, host_buffer(values.numel(), values.dtype, self._device)
            values.copy_(there, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._sent = values, event, noted

    @property
    def at_hand(self) -> bool:
        """Whether what was sent can be taken without waiting for what the device has still to do."""
        return self._sent is not None and self._sent[1] is None

    def take(self) -> Mapping[int, Reading]:
        """Slot -> what was sent of it; waits until it is there."""
        if self._sent is None:
            return {}
        (values, event, noted), self._sent = self._sent, None
        if event is not None:
            event.synchronize()
        numbers = iter(values.tolist())
        readings: dict[int, Reading] = {}
        for each in noted:
            for slot, instances, priors in each.spans:
                instance = sum(next(numbers) for _ in range(instances)) / instances
                prior = sum(next(numbers) for _ in range(priors)) / priors if priors else 0.0
                if slot is not None:
                    readings.setdefault(slot, Reading()).losses.append((instance, prior))
            for slot in each.slots:
                norm = next(numbers)
                if slot is not None:
                    readings[slot].norms.append(norm)
        return self._means(readings)

    def _means(self, readings: dict[int, Reading]) -> dict[int, Reading]:
        """Losses as means over processes, all in one exchange. Norms are of gradients that were means already."""
        losses = [loss for reading in readings.values() for pair in reading.losses for loss in pair]
        means = iter(mean_of_numbers(losses, self._device))
        for reading in readings.values():
            reading.losses = [(next(means), next(means)) for _ in reading.losses]
        return readings
