"""Times on a schedule of noise."""

from __future__ import annotations

import pytest
import torch

from dbexp.config.schema import TrainConfig
from tests import builders


def times(**settings: float | str) -> torch.Tensor:
    cfg = TrainConfig(**settings)  # type: ignore[arg-type]  # numbers and names alike
    return builders.model().draw_times(20_000, torch.Generator().manual_seed(0), cfg, 512)


def test_every_step_alike_is_a_single_draw_of_integers() -> None:
    """Nothing else may be drawn from the generator: the noise that follows is that of every stored training."""
    for timesteps in ("checkpoint", "uniform"):
        expected = torch.randint(1000, (20_000,), generator=torch.Generator().manual_seed(0))
        assert torch.equal(times(timesteps=timesteps), expected)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 0.5)])
def test_logit_normal(mean: float, std: float) -> None:
    shares = (times(timesteps="logit_normal", logit_mean=mean, logit_std=std) + 0.5) / 1000
    assert shares.min() > 0 and shares.max() < 1
    logits = torch.logit(shares.double())
    assert logits.mean() == pytest.approx(mean, abs=5 * std / 20_000**0.5 + 0.01)
    assert logits.std() == pytest.approx(std, rel=0.03)


def test_all_noise_is_the_last_step() -> None:
    assert times(timesteps="logit_normal", logit_mean=100.0).eq(999).all()
