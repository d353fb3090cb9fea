"""Which passes make an optimizer step, as a pure function: `train.grad_accum` of them, and what is left of an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dbexp.config.schema import TrainConfig


@dataclass(frozen=True)
class Accumulation:
    """Passes are counted anew after each cycle; its last step has what the others leave.

    Attributes:
        every: passes of a step.
        cycle: passes of a cycle, on each process.
        epoch: microbatches of an epoch, which processes share.
        wraps: whether an epoch ends for all processes at once; those without a microbatch then take the epoch's first
            again, as accelerate deals them (`even_batches`).
    """

    every: int
    cycle: int
    epoch: int
    wraps: bool

    @property
    def _steps(self) -> int:
        """Of a cycle."""
        return math.ceil(self.cycle / self.every)

    def steps(self, passes: int) -> int:
        """Optimizer steps after so many passes."""
        cycles, rest = divmod(passes, self.cycle)
        return cycles * self._steps + rest // self.every

    def passes(self, steps: int) -> int:
        """Passes after so many optimizer steps."""
        cycles, rest = divmod(steps, self._steps)
        return cycles * self.cycle + rest * self.every

    def between(self, passes: int) -> bool:
        """Whether the last of so many passes ends a step."""
        return passes % self.cycle % self.every == 0

    def of_step(self, step: int) -> int:
        """Passes of a 1-based optimizer step."""
        return self.passes(step) - self.passes(step - 1)

    def microbatch(self, passes: int, process: int, processes: int) -> int:
        """Which microbatch a process takes after so many passes: its number, on through all epochs."""
        if not self.wraps:
            return passes * processes + process
        epoch, turn = divmod(passes, self.cycle)
        return epoch * self.epoch + (turn * processes + process) % self.epoch


def of(cfg: TrainConfig, instances: int, priors: int, processes: int = 1) -> Accumulation:
    """The accumulation of a training.

    Args:
        cfg: `batch_size`, `grad_accum` and `remainder`.
        instances, priors: numbers of pictures; no class pictures without prior preservation.
        processes: that train it together.
    """
    epoch, wraps = math.ceil(max(instances, priors) / cfg.batch_size), cfg.remainder == "step"
    return Accumulation(cfg.grad_accum, math.ceil(epoch / processes) if wraps else cfg.grad_accum, epoch, wraps)
