"""The rows of a microbatch on their way to the device: drawn a step ahead, and sent in one copy.

Shapes: N rows of all lanes, one lane after the other, in each the subject's rows before those of its class; V views of
pictures; C, h and w of latents.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from math import prod

import torch
from torch import Tensor

from dbexp.core.device import host_buffer
from dbexp.models import Model
from dbexp.train import loss, optimizer
from dbexp.train.data import TrainingData
from dbexp.train.lane import Draw, Lane

_ALIGNED = 16
"""Bytes that a tensor in a buffer begins at a multiple of."""


@dataclass(frozen=True)
class Batch:
    """What is drawn of a microbatch, and what the optimizer steps after it are made with.

    Attributes:
        times: [N], as the model draws them.
        noise, latent_noise: fp32 [N, C, h, w].
        pictures: rows of `Pictures`, int64 [N].
        weights: of the squared error of each row, fp32 [N].
        coefficients: what each row counts in its lane's loss, fp32 [N].
        owners: which of the lanes of the batch each row belongs to, int64 [N].
        rates: learning rates by slot and part, [K, parts]; see `optimizer.rate_dtype`.
        stands: by slot, fp32 [K], 1: no optimizer step of its lane follows.
        guidance: see `dbexp.models.GUIDANCE`, fp32 [N].
    """

    times: Tensor
    noise: Tensor
    latent_noise: Tensor
    pictures: Tensor
    weights: Tensor
    coefficients: Tensor
    owners: Tensor
    rates: Tensor
    stands: Tensor
    guidance: Tensor

    @staticmethod
    def of(
        draws: Mapping[int, Draw],
        lanes: Sequence[Lane],
        pictures: Pictures,
        model: Model,
        active: Collection[int] | None = None,
    ) -> Batch:
        """The rows of several lanes, on the host.

        Args:
            draws: slot -> what its lane drew.
            lanes: lane k has slot k.
            active: slots of lanes that train; the rows of others count nothing. None: all.
        """
        live = [slot for slot in draws if active is None or slot in active]
        numbers = [row for slot, draw in draws.items() for row in pictures.rows(slot, draw)]
        counts = [
            loss.coefficients(lanes[slot], draw) if slot in live else [0.0] * len(draw) for slot, draw in draws.items()
        ]
        owners = [number for number, draw in enumerate(draws.values()) for _ in range(len(draw))]
        guidance = [lanes[slot].cfg.guidance for slot, draw in draws.items() for _ in range(len(draw))]
        due = {slot: lanes[slot].rates for slot in live if lanes[slot].due}
        parts = max(len(lane.optimizer.rates) for lane in lanes)
        rates = [due.get(slot, []) for slot in range(len(lanes))]
        return Batch(
            times=torch.cat([draw.times for draw in draws.values()]),
            noise=torch.cat([draw.noise for draw in draws.values()]),
            latent_noise=torch.cat([draw.latent_noise for draw in draws.values()]),
            pictures=torch.tensor(numbers),
            weights=torch.cat([loss.weights(model, lanes[slot], draw) for slot, draw in draws.items()]),
            coefficients=torch.tensor([value for each in counts for value in each]),
            owners=torch.tensor(owners),
            rates=torch.tensor(
                [each + [0.0] * (parts - len(each)) for each in rates], dtype=optimizer.rate_dtype(model.device)
            ),
            stands=torch.tensor([float(slot not in due) for slot in range(len(lanes))]),
            guidance=torch.tensor(guidance, dtype=torch.float32),
        )

    def rows(self, start: int, end: int) -> Batch:
        """The same with some of its rows alone, as views."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: part if name in _BY_SLOT else part[start:end] for name, part in parts.items()})


_BY_SLOT = ("rates", "stands")


def send(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device: in one copy, which the host does not wait for."""
    if device.type == "cpu":
        return batch
    buffer, places = gather(batch, device)
    return Batch(**views(buffer.to(device, non_blocking=True), places))


def gather(batch: Batch, device: torch.device) -> tuple[Tensor, Places]:
    """A batch in one buffer of bytes on the host, which a device may copy from; and where in it everything stands."""
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    places, size = layout(tensors)
    buffer = host_buffer(size, torch.uint8, device)
    for name, view in views(buffer, places).items():
        view.copy_(tensors[name])
    return buffer, places


Places = Mapping[str, tuple[int, torch.dtype, torch.Size]]
"""Name -> (first byte, dtype, shape)."""


def layout(tensors: Mapping[str, Tensor]) -> tuple[Places, int]:
    """Where tensors stand in a buffer that holds all of them, and how many bytes it has."""
    places, size = {}, 0
    for name, tensor in tensors.items():
        places[name] = size, tensor.dtype, tensor.shape
        size += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    return places, size


def views(buffer: Tensor, places: Places) -> dict[str, Tensor]:
    """The tensors in a buffer of bytes."""
    return {
        name: buffer[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)
        for name, (start, dtype, shape) in places.items()
    }


class Pictures:
    """Posteriors of the pictures of all lanes, side by side on the device, those that lanes share once.

    Args:
        data: of the lanes, slot by slot.

    Attributes:
        mean, std: fp32 [V, C, h, w]; the second is zero for lanes that train on the posterior's mean.
        sizes: fp32 [V, 6], see `dbexp.models.SIZES`.
    """

    def __init__(self, data: Sequence[TrainingData], device: torch.device) -> None:
        self._first: list[tuple[int, int]] = []
        starts: dict[tuple[int, bool], int] = {}
        means, stds, sizes, total = [], [], [], 0
        for entry in data:
            sampled, firsts = entry.training.cfg.sample_latents, []
            for bank in (entry.instance, entry.prior or entry.instance):
                key = id(bank), sampled
                if key not in starts:
                    starts[key], total = total, total + len(bank.mean)
                    means.append(bank.mean)
                    stds.append(bank.std if sampled else torch.zeros_like(bank.std))
                    sizes.append(bank.sizes)
                firsts.append(starts[key])
            self._first.append((firsts[0], firsts[1]))
        self.mean, self.std, self.sizes = (torch.cat(parts).to(device) for parts in (means, stds, sizes))

    def rows(self, slot: int, draw: Draw) -> list[int]:
        """Which of the V views the rows of a lane are."""
        instance, prior = self._first[slot]
        return [instance + row for row in draw.instance] + [prior + row for row in draw.prior]

    def latents(self, batch: Batch) -> Tensor:
        """Of every row, drawn from the posterior, fp32 [N, C, h, w]."""
        return torch.addcmul(self.mean[batch.pictures], self.std[batch.pictures], batch.latent_noise)


class Drawing:
    """What lanes draw for their microbatches.

    Args:
        lanes: lane k has slot k.
        ahead: draw for the next microbatch in a thread while a device computes this one.
    """

    def __init__(self, lanes: Sequence[Lane], ahead: bool) -> None:
        self._lanes = lanes
        self._latest: dict[int, Draw] = {}
        self._pool = ThreadPoolExecutor(1, "dbexp-draw") if ahead else None
        self._next: tuple[list[tuple[int, int]], Future[dict[int, Draw]]] | None = None

    def take(self, slots: Sequence[int], seated: Sequence[int] | None = None) -> dict[int, Draw]:
        """Slot -> what its lane draws now.

        Args:
            slots: of lanes that go on.
            seated: of these and of others, for which there is what they drew last; None: no others.
        """
        draws = self._now(slots)
        self._latest |= draws
        return {slot: self._again(slot) for slot in (slots if seated is None else seated)}

    def _again(self, slot: int) -> Draw:
        if slot not in self._latest:  # it had ended before this pack began
            self._latest[slot] = self._lanes[slot].draw()
        return self._latest[slot]

    def _now(self, slots: Sequence[int]) -> dict[int, Draw]:
        pending, self._next = self._next, None
        if pending is not None:
            draws = pending[1].result()  # first of all: the thread must not see lanes go on
            if pending[0] == self._moment(slots):
                return draws
        return self._draw(slots)

    def begin(self, slots: Sequence[int]) -> None:
        """Draw ahead for these, who will most likely be next."""
        if self._pool is not None and slots:
            self._next = self._moment(slots), self._pool.submit(self._draw, list(slots))

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown()

    def _moment(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        return [(slot, self._lanes[slot].micro) for slot in slots]

    def _draw(self, slots: Sequence[int]) -> dict[int, Draw]:
        return {slot: self._lanes[slot].draw() for slot in slots}
