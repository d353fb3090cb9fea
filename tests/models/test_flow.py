"""Flow matching: shares of noise, their shift, and what diffusers' scheduler makes of the same settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dbexp.config.schema import TrainConfig
from dbexp.models.flow import FlowMatching, shift_of_resolution, shifted

FLUX = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


class Flow(FlowMatching):
    """A family, as far as times go."""

    def __init__(self, **scheduler: Any) -> None:
        self._settings = lambda *path: scheduler

    def times(self, **settings: Any) -> torch.Tensor:
        return self.draw_times(20_000, torch.Generator().manual_seed(0), TrainConfig(**settings), 1024)


def test_the_shift_is_that_of_diffusers() -> None:
    for shift in (1.0, 3.0, 6.0):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        shares = torch.arange(1000, 0, -1) / 1000
        torch.testing.assert_close(shifted(shares, shift), scheduler.sigmas[:1000])


@pytest.mark.parametrize(("resolution", "shift"), [(512, 1.88), (768, 2.33), (1024, 3.16)])
def test_the_shift_of_a_resolution(resolution: int, shift: float) -> None:
    made = shift_of_resolution(resolution, FLUX)
    assert made == pytest.approx(shift, abs=0.006)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    shares = np.linspace(1, 0.1, 10)
    expected = scheduler.time_shift(np.log(made), 1.0, shares)
    torch.testing.assert_close(shifted(torch.from_numpy(shares), made), torch.from_numpy(expected))


def test_null_is_the_checkpoints_own_fixed_shift() -> None:
    assert Flow(shift=3.0).shift(None, 1024) == 3.0
    assert Flow(shift=3.0, use_dynamic_shifting=True).shift(None, 1024) == 1.0
    assert Flow(shift=3.0).shift(2, 1024) == 2.0
    assert Flow(**FLUX).shift("resolution", 1024) == pytest.approx(3.16, abs=0.006)


def test_uniform_times_reach_all_noise_and_never_none() -> None:
    times = Flow().times()
    assert times.dtype == torch.float32 and times.min() > 0 and times.max() <= 1
    assert times.mean() == pytest.approx(0.5, abs=0.01) and times.std() == pytest.approx(12**-0.5, rel=0.02)


def test_logit_normal_times() -> None:
    logits = torch.logit(Flow().times(timesteps="logit_normal", logit_mean=0.5, logit_std=2.0).double())
    assert logits.mean() == pytest.approx(0.5, abs=0.06) and logits.std() == pytest.approx(2.0, rel=0.03)


def test_a_shift_moves_times_towards_noise() -> None:
    torch.testing.assert_close(Flow().times(shift=3), shifted(Flow().times(), 3.0))
    assert Flow().times(shift=3).mean() > 0.6


def test_noise_and_target_are_those_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    latents, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    steps = scheduler.timesteps[[0, 400, 999]]
    times = scheduler.sigmas[[0, 400, 999]]
    noisy = Flow().add_noise(latents, noise, times)
    torch.testing.assert_close(noisy, scheduler.scale_noise(latents, steps, noise))
    assert torch.equal(Flow().target(latents, noise, times), noise - latents)
    # a step along the velocity from all noise to none ends at the latents
    torch.testing.assert_close(noise - Flow().target(latents, noise, times), latents, rtol=1e-5, atol=1e-6)
