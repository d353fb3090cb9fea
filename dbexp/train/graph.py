"""A step recorded as a CUDA graph: launched whole, where its operations one by one keep the host busy.

What is recorded runs with the numbers of Python and the addresses of memory that it was recorded with. So all that
changes from step to step is in a batch, which is copied to where the recorded one was; everything else stays where it
is: weights, gradients, moments and loss scales in the stacks and optimizers of a pack, pictures and texts on the card.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dbexp.core.device import processes
from dbexp.core.errors import first_line
from dbexp.models import Model
from dbexp.train.batch import Batch, gather, send, views
from dbexp.train.lane import Lane

log = logging.getLogger(__name__)

WARM = 3
"""Steps of a shape before it is recorded: what libraries set up, choose or compile at first is no part of a step."""
MOST = 8
"""Shapes that are recorded. They share their memory, and only what comes often is worth it."""

Results = tuple[Tensor, Tensor | None]
"""The squared error of every row, fp32 [N]; and norms of gradients, fp32 [n]."""

Work = Callable[[Batch], Results]

Record = Callable[[Callable[[], Results]], Callable[[], Results]]
"""Records work; what comes of it does that work again each time, with what is in the same memory by then, and leaves
its results in the same place."""


def obstacle(lanes: Sequence[Lane], model: Model) -> str | None:
    """What keeps the steps of a pack from being recorded, in a word; None: nothing that is known beforehand."""
    if model.device.type != "cuda":
        return f"model.device={model.device}"
    if processes()[1] > 1:
        return "several processes"
    for lane in lanes:
        if lane.cfg.optimizer != "adamw":
            return f"train.optimizer={lane.cfg.optimizer}"
        if lane.training.lora.text_encoder:
            return "lora.text_encoder=true"
        if lane.cfg.gradient_checkpointing:  # it reads the state of random numbers, to compute again with the same
            return "train.gradient_checkpointing=true"
    return None


def of_pack(lanes: Sequence[Lane], model: Model) -> Graphs | None:
    """The graphs of a pack; None where it has none, and the log says why if some were asked for."""
    if lanes[0].cfg.graphs == "off":
        return None
    reason = obstacle(lanes, model)
    if reason is None:
        return Graphs(model.device, record)
    log.info("train: steps are launched operation by operation, in spite of train.graphs=auto: %s", reason)
    return None


def record(work: Callable[[], Results]) -> Callable[[], Results]:
    """See `Record`; on the current CUDA device."""
    graph = torch.cuda.CUDAGraph()
    # of one memory for all, as one runs at a time; the thread that draws ahead touches no card
    with torch.cuda.graph(graph, pool=_pool(), capture_error_mode="thread_local"):
        results = work()  # launches nothing

    def replay() -> Results:
        graph.replay()
        return results

    return replay


@cache
def _pool() -> Any:
    return torch.cuda.graph_pool_handle()


@dataclass(frozen=True)
class _Recorded:
    buffer: Tensor
    replay: Callable[[], Results]
    needs: object
    """What the recorded work reads beside the batch, which must not be let go."""


class Graphs:
    """Recorded steps, one for each shape of a batch.

    Args:
        device: where they run.
        record: see `Record`.
        warm, most: see `WARM` and `MOST`.

    Attributes:
        replayed: steps that were launched whole.
    """

    def __init__(self, device: torch.device, record: Record, warm: int = WARM, most: int = MOST) -> None:
        self._device, self._record, self._warm, self._most = device, record, warm, most
        self._seen: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recorded] = {}
        self._given_up = False
        self.replayed = 0

    def run(self, shape: Hashable, batch: Batch, work: Work, needs: object = None) -> Results:
        """Do a step's work on the device.

        Args:
            shape: equal for batches whose work differs in the numbers of the batch alone.
            batch: on the host.
            work: what to do with it on the device.
            needs: what else it reads there, and would be let go otherwise.

        Returns:
            What `work` does; to be used before the next step, which may write to the same place.
        """
        self._seen[shape] += 1
        recorded = self._recorded.get(shape) or self._try(shape, batch, work, needs)
        if recorded is None:
            return work(send(batch, self._device))
        recorded.buffer.copy_(gather(batch, self._device)[0], non_blocking=True)
        self.replayed += 1
        return recorded.replay()

    def close(self) -> None:
        """Let go of what was recorded, and of its memory."""
        self._recorded.clear()

    def _try(self, shape: Hashable, batch: Batch, work: Work, needs: object) -> _Recorded | None:
        """Record a shape, if it came often enough and can be."""
        if self._given_up or self._seen[shape] <= self._warm or len(self._recorded) == self._most:
            return None
        host, places = gather(batch, self._device)
        buffer = host.to(self._device, copy=True)
        try:
            replay = self._record(lambda: work(Batch(**views(buffer, places))))
        except RuntimeError as error:  # nothing of it ran: what was recorded is lost, and the step is made as before
            self._given_up = True
            self.close()
            reason = first_line(error)
            log.warning("train: steps are launched operation by operation: recording one failed (%s)", reason)
            return None
        self._recorded[shape] = _Recorded(buffer, replay, needs)
        return self._recorded[shape]
