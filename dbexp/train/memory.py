"""How many lanes the memory of a device has room for: measured by one forward and backward pass before a pack trains.

On a GPU, passes with one and with two lanes tell by their peaks what a lane takes and what a pack takes beside its
lanes; a pack may use nine tenths of what is free. On a CPU, where a pass is slow and nothing records peaks, one pass
with one lane counts the bytes that autograd keeps for the backward pass, beside the lane's weights and their optimizer;
a pack may use half of the memory that the system calls available.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from dbexp.core.device import free_memory, is_out_of_memory, release_memory
from dbexp.core.errors import byte_size
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.train import packing
from dbexp.train.data import Training, prepare
from dbexp.train.lane import enter, open_slots
from dbexp.train.loop import Loop

log = logging.getLogger(__name__)

_COPIES = 4
"""Of a lane's weights in fp32: themselves, their gradients, and two moments of the optimizer."""
_WORKING_COPIES = 2
"""Of the same in the precision of the base: what passes compute with, and its gradient."""


@dataclass(frozen=True)
class Cost:
    """Bytes of a pack: `fixed`, and `lane` for every lane in it."""

    fixed: int
    lane: int


_measured: dict[tuple[object, ...], Cost] = {}


def most_lanes(device: str) -> int:
    """Lanes of a pack of which more would be of no use, on a device as `model.device` has it."""
    gpu = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    return packing.MOST_LANES_ON_GPU if gpu else packing.MOST_LANES


def room(trainings: Sequence[Training], model: Model, store: Store) -> int:
    """How many of these lanes may train at once; the log says why.

    Args:
        trainings: of the lanes of a pack. All count as much as the one with most rows.
        model: the frozen base.
        store: has their latents.
    """
    largest = max(trainings, key=_size)
    key = (_size(largest), model.identity, str(model.dtype), str(model.device))
    if key not in _measured:
        _measured[key] = _measure(largest, model, store)
    cost, free = _measured[key], free_memory(model.device)
    share = packing.MEMORY_SHARE["cuda" if model.device.type == "cuda" else "cpu"]
    fit = packing.lanes_that_fit(share * free, cost.fixed, cost.lane, len(trainings))
    log.info(
        "pack size: %d of %d lanes at once: a lane takes %s beside %s for all of them, and of %s free on %s %d %% may "
        "be used; hydra.launcher.size=N decides otherwise",
        fit,
        len(trainings),
        byte_size(cost.lane),
        byte_size(cost.fixed),
        byte_size(free),
        model.device,
        round(100 * share),
    )
    return fit


def _size(training: Training) -> tuple[int, bool, int, int, str, bool]:
    """What decides a lane's memory: first what lanes of a pack may differ in."""
    rows = training.cfg.batch_size * len(training.prompts)
    common = training.resolution, training.lora.sites, training.cfg.gradient_checkpointing
    return rows, training.lora.text_encoder, training.lora.rank, *common


def _measure(training: Training, model: Model, store: Store) -> Cost:
    try:
        if model.device.type != "cuda":
            return Cost(0, _backward_bytes(training, model, store))
        first, second = (_peak(training, count, model, store) for count in (1, 2))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        release_memory()
        return Cost(free_memory(model.device), 1)  # not even two: one at a time
    lane = max(second - first, 1)
    return Cost(max(first - lane, 0), lane)


def _peak(training: Training, count: int, model: Model, store: Store) -> int:
    """Most bytes that are allocated on the GPU while so many lanes make an optimizer step."""
    release_memory()
    torch.cuda.reset_peak_memory_stats(model.device)
    with copies(training, count, model, store) as loop:
        for _ in range(training.accumulation.passes(1)):
            loop.microbatch()
    return torch.cuda.max_memory_allocated(model.device)


def _backward_bytes(training: Training, model: Model, store: Store) -> int:
    """Bytes that a lane takes on a CPU."""
    frozen: set[int] = set()
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with copies(training, 1, model, store) as loop:
        for part in training.ranks(model.family):
            module = model.part(part)
            weights = (weight for weight in chain(module.parameters(), module.buffers()) if not weight.requires_grad)
            frozen |= {weight.untyped_storage().data_ptr() for weight in weights}
        stacks = [stack for lane in loop.lanes for stack in lane.adapter.stacks.values()]
        frozen |= {stack.working.untyped_storage().data_ptr() for stack in stacks}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loop.microbatch()
        trained = sum(row.numel() for row in loop.lanes[0].adapter.rows.values())
        each = _COPIES * torch.float32.itemsize + _WORKING_COPIES * model.dtype.itemsize
    return sum(saved.values()) + each * trained


@contextmanager
def copies(training: Training, count: int, model: Model, store: Store) -> Iterator[Loop]:
    """So many copies of a lane that are ready to step, and are forgotten after the block."""
    data = prepare([training] * count, model, store)
    try:
        with open_slots(data, model) as slots:
            lanes = [enter(slots, slot, entry, model) for slot, entry in enumerate(data)]
            with closing(Loop(lanes, slots, model, _Silent(), lambda slot, rows: None)) as loop:
                yield loop
    finally:
        model.enable_gradient_checkpointing(False)


class _Silent:
    """A progress bar that nobody needs to see."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Do nothing."""
