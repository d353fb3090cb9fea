"""Schedules: step by step what diffusers' trainers would have set."""

from __future__ import annotations

import pytest
import torch
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup, get_scheduler

from dbexp.config.schema import SCHEDULES, LrScheduleConfig
from dbexp.train import lr_schedule

PEAK = 2e-4
STEPS = 30


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def rates(stepped: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LambdaLR, count: int) -> list[float]:
    """The learning rate of each of the first `count` optimizer steps of a diffusers trainer."""
    seen = []
    for _ in range(count):
        seen.append(float(scheduler.get_last_lr()[0]))
        stepped.step()
        scheduler.step()
    return seen


def ours(cfg: LrScheduleConfig, count: int, steps: int = STEPS) -> list[float]:
    return [PEAK * lr_schedule.factor(step, cfg, steps=steps, peak_lr=PEAK) for step in range(count)]


@pytest.mark.parametrize("warmup", [0, 1, 7])
@pytest.mark.parametrize("horizon", [None, 20, 60])
@pytest.mark.parametrize("name", SCHEDULES)
def test_equals_diffusers(name: str, horizon: int | None, warmup: int) -> None:
    reference = optimizer()
    scheduler = get_scheduler(name, reference, num_warmup_steps=warmup, num_training_steps=horizon or STEPS)
    cfg = LrScheduleConfig(name=name, warmup_steps=warmup, horizon=horizon)
    count = (horizon or STEPS) + 1
    assert ours(cfg, count) == pytest.approx(rates(reference, scheduler, count), rel=1e-12, abs=1e-20)


@pytest.mark.parametrize(("power", "lr_end"), [(1.0, 1e-7), (2.0, 1e-5), (0.5, 0.0)])
def test_polynomial_shapes(power: float, lr_end: float) -> None:
    reference = optimizer()
    scheduler = get_polynomial_decay_schedule_with_warmup(reference, 5, 20, lr_end=lr_end, power=power)
    cfg = LrScheduleConfig(name="polynomial", warmup_steps=5, horizon=20, power=power, lr_end=lr_end)
    assert ours(cfg, STEPS) == pytest.approx(rates(reference, scheduler, STEPS), rel=1e-12, abs=1e-20)


def test_horizon_of_2023_ends_half_way() -> None:
    """The trainer of mid-2023 with two accumulated passes decayed over twice the steps that it made."""
    last = ours(LrScheduleConfig(name="polynomial", horizon=2 * STEPS, lr_end=1e-7), STEPS + 1)[-1]
    assert last == pytest.approx((PEAK + 1e-7) / 2)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_stays_down_after_the_horizon(name: str) -> None:
    end = 1e-7 if name == "polynomial" else 0.0
    assert ours(LrScheduleConfig(name=name, horizon=10), STEPS)[10:] == pytest.approx([end] * 20, abs=1e-20)


def test_constant_ignores_warmup() -> None:
    assert ours(LrScheduleConfig(name="constant", warmup_steps=500), STEPS) == [PEAK] * STEPS


def test_warmup_starts_at_zero_and_reaches_the_peak() -> None:
    rising = ours(LrScheduleConfig(name="constant_with_warmup", warmup_steps=4), 6)
    assert rising == pytest.approx([0, PEAK / 4, PEAK / 2, 3 * PEAK / 4, PEAK, PEAK])
