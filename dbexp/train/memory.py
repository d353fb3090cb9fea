"""How many lanes the memory of a device has room for: measured by one forward and backward pass before a pack trains.

On a GPU, passes with one and with two lanes tell by their peaks what a lane takes and what a pack takes beside its
lanes; a pack may use nine tenths of what is free. On a CPU, where a pass is slow and nothing records peaks, one pass
with one lane counts the bytes that autograd keeps for the backward pass, beside the lane's weights and their optimizer;
a pack may use half of the memory that the system calls available.
"""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from dbexp.config.schema import Config
from dbexp.core.errors import byte_size
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.train import packing
from dbexp.train.lane import Training
from dbexp.train.loop import Loop
from dbexp.train.train import enter_slot, open_slots, prepare

log = logging.getLogger(__name__)

_COPIES = 4
"""Of a lane's weights: themselves, their gradients, and two moments of the optimizer."""


@dataclass(frozen=True)
class Cost:
    """Bytes of a pack: `fixed`, and `lane` for every lane in it."""

    fixed: int
    lane: int


_measured: dict[str, Cost] = {}


def most_lanes(config: Config) -> int:
    """Lanes of a pack of which more would be of no use."""
    wanted = config.model.device
    gpu = torch.cuda.is_available() if wanted == "auto" else wanted.startswith("cuda")
    return packing.MOST_LANES_ON_GPU if gpu else packing.MOST_LANES


def room(tasks: Sequence[Training], model: Model, store: Store) -> int:
    """How many of these lanes may train at once; the log says why.

    Args:
        tasks: of the lanes of a pack. All count as much as the one with most rows.
        model: the frozen base.
        store: has their latents.
    """
    largest = max(tasks, key=_size)
    key = json.dumps(
        [packing.shared(largest.config), _size(largest), model.identity, str(model.device)], sort_keys=True
    )
    if key not in _measured:
        _measured[key] = _measure(largest, model, store)
    cost, free = _measured[key], _free(model.device)
    share = packing.MEMORY_SHARE["cuda" if model.device.type == "cuda" else "cpu"]
    fit = packing.lanes_that_fit(share * free, cost.fixed, cost.lane, len(tasks))
    log.info(
        "pack size: %d of %d lanes at once: a lane takes %s beside %s for all of them, and of %s free on %s %d %% may "
        "be used; hydra.launcher.size=N decides otherwise",
        fit,
        len(tasks),
        byte_size(cost.lane),
        byte_size(cost.fixed),
        byte_size(free),
        model.device,
        round(100 * share),
    )
    return fit


def _size(task: Training) -> tuple[int, bool, int]:
    """What decides a lane's memory, beyond what all lanes of a pack have in common."""
    config = task.config
    rows = config.train.batch_size * (2 if config.prior.weight > 0 else 1)
    return rows, config.lora.text_encoder, config.lora.rank


def _free(device: torch.device) -> int:
    """Bytes that a pack could use, among them what this process holds but does not use."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return int(psutil.virtual_memory().available)


def _measure(task: Training, model: Model, store: Store) -> Cost:
    if model.device.type != "cuda":
        return Cost(0, _kept_for_backward(task, model, store))
    try:
        one, two = (_peak(task, count, model, store) for count in (1, 2))
    except torch.OutOfMemoryError:
        release()
        return Cost(_free(model.device), 1)  # not even two: one at a time
    lane = max(two - one, 1)
    return Cost(max(one - lane, 0), lane)


def _peak(task: Training, count: int, model: Model, store: Store) -> int:
    """Most bytes that are allocated on the GPU while so many lanes make an optimizer step."""
    release()
    torch.cuda.reset_peak_memory_stats(model.device)
    _step(task, count, model, store, task.config.train.grad_accum)
    return torch.cuda.max_memory_allocated(model.device)


def _kept_for_backward(task: Training, model: Model, store: Store) -> int:
    """Bytes that a lane takes on a CPU."""
    frozen = {tensor.untyped_storage().data_ptr() for tensor in model.part("unet").parameters()}
    if task.config.lora.text_encoder:
        frozen |= {tensor.untyped_storage().data_ptr() for tensor in model.part("text_encoder").parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        weights = _step(task, 1, model, store, 1)
    return sum(kept.values()) + _COPIES * weights


def _step(task: Training, count: int, model: Model, store: Store, microbatches: int) -> int:
    """Train copies of a lane for a few microbatches and forget it; returns the bytes of one lane's weights."""
    lanes = prepare([task] * count, model, store)
    try:
        with open_slots(lanes, model) as slots:
            for slot, lane in enumerate(lanes):
                enter_slot(lane, slot, slots, model)
            with closing(Loop(lanes, slots, model, _Silent(), lambda slot, rows: None)) as loop:
                for _ in range(microbatches):
                    loop.microbatch()
            return sum(parameter.numel() * parameter.element_size() for parameter in lanes[0].parameters)
    finally:
        model.enable_gradient_checkpointing(False)


class _Silent:
    """A progress bar that nobody needs to see."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Do nothing."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory did not suffice; on a CPU torch has no class of its own for it."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def release() -> None:
    """Give memory that nothing refers to back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
