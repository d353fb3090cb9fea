"""Learning-rate schedules as pure functions: optimizer step -> factor of the peak learning rate.

Every function takes the 0-based optimizer step and returns a factor, and agrees with the schedule of the same name in
the trainers people use (diffusers.optimization). The text encoder's learning rate follows the same factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dbexp.config.schema import LrScheduleConfig


def constant(step: int, warmup: int, horizon: int) -> float:
    """1 throughout: warm-up is ignored, as in the 2023 trainers."""
    return 1.0


def constant_with_warmup(step: int, warmup: int, horizon: int) -> float:
    """Linear from 0 over `warmup` steps, then 1."""
    return step / warmup if step < warmup else 1.0


def linear(step: int, warmup: int, horizon: int) -> float:
    """Warm-up, then linear to 0 at `horizon`."""
    if step < warmup:
        return step / warmup
    return max(0.0, (horizon - step) / max(1, horizon - warmup))


def cosine(step: int, warmup: int, horizon: int) -> float:
    """Warm-up, then half a cosine to 0 at `horizon`, and 0 after it."""
    if step < warmup:
        return step / warmup
    progress = min(1.0, (step - warmup) / max(1, horizon - warmup))
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def polynomial(step: int, warmup: int, horizon: int, *, power: float, end: float) -> float:
    """(1 - end) * (1 - (t - w) / (T - w)) ** power + end, after warm-up.

    Args:
        end: final learning rate as a factor of the peak.
    """
    if step < warmup:
        return step / warmup
    remaining = max(0.0, 1.0 - (step - warmup) / max(1, horizon - warmup))
    return float((1.0 - end) * remaining**power + end)


_PLAIN: dict[str, Callable[[int, int, int], float]] = {
    "constant": constant,
    "constant_with_warmup": constant_with_warmup,
    "linear": linear,
    "cosine": cosine,
}


def factor(step: int, cfg: LrScheduleConfig, *, steps: int, peak_lr: float) -> float:
    """Factor of the peak learning rate at a 0-based optimizer step.

    Args:
        step: 0 for the first optimizer step.
        cfg: the schedule; a null horizon means `steps`.
        steps: optimizer steps of the run.
        peak_lr: the peak learning rate that `cfg.lr_end` is measured against (the UNet's, for both parts).
    """
    horizon = cfg.horizon or steps
    if cfg.name == "polynomial":
        return polynomial(step, cfg.warmup_steps, horizon, power=cfg.power, end=cfg.lr_end / peak_lr)
    return _PLAIN[cfg.name](step, cfg.warmup_steps, horizon)


def decay_end(cfg: LrScheduleConfig, *, steps: int) -> int | None:
    """Optimizer step at which a decay is complete; None for a schedule without one.

    Runs of different length share their first steps exactly when these agree.
    """
    return None if cfg.name in ("constant", "constant_with_warmup") else cfg.horizon or steps
