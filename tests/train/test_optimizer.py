"""Optimizers: groups, rates, and the library's own steps."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dbexp.config.schema import TrainConfig
from dbexp.train import optimizer


def parameters(count: int, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(3, 2, generator=generator)) for _ in range(count)]


class TestGroups:
    def test_one_per_part(self) -> None:
        built = optimizer.build(TrainConfig(lr=1e-3, text_encoder_lr=1e-4), [parameters(2), parameters(3)])
        assert [len(group["params"]) for group in built.param_groups] == [2, 3]
        assert [group["lr"] for group in built.param_groups] == [1e-3, 1e-4]

    def test_text_encoder_follows_by_default(self) -> None:
        built = optimizer.build(TrainConfig(lr=1e-3), [parameters(2), parameters(3)])
        assert [group["lr"] for group in built.param_groups] == [1e-3, 1e-3]
        assert len(optimizer.build(TrainConfig(), [parameters(2)]).param_groups) == 1

    def test_set_lr_is_a_factor_of_the_peak(self) -> None:
        built = optimizer.build(TrainConfig(lr=1e-3, text_encoder_lr=1e-4), [parameters(1), parameters(1)])
        for factor in (0.5, 0.25, 1.0, 0.0):
            assert optimizer.set_lr(built, factor) == pytest.approx(1e-3 * factor)
            assert [group["lr"] for group in built.param_groups] == pytest.approx([1e-3 * factor, 1e-4 * factor])

    def test_peaks_survive_saving(self) -> None:
        saved = optimizer.build(TrainConfig(lr=1e-3), [parameters(1)])
        optimizer.set_lr(saved, 0.5)
        loaded = optimizer.build(TrainConfig(lr=1e-3), [parameters(1)])
        loaded.load_state_dict(saved.state_dict())
        assert optimizer.set_lr(loaded, 1.0) == pytest.approx(1e-3)


def test_adamw_is_torchs() -> None:
    cfg = TrainConfig(lr=1e-2, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.1)
    ours, theirs = parameters(2), parameters(2)
    built = optimizer.build(cfg, [ours])
    plain = torch.optim.AdamW(
        theirs, lr=1e-2, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1, foreach=False, fused=False
    )
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(3, 2, generator=generator)
            b.grad = a.grad.clone()
        built.step()
        plain.step()
    for a, b, start in zip(ours, theirs, parameters(2), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        assert (a - start).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "library", "path"),
    [("adamw8bit", "bitsandbytes", "optim.AdamW8bit"), ("prodigy", "prodigyopt", "Prodigy")],
)
def test_optional_libraries(monkeypatch: pytest.MonkeyPatch, name: str, library: str, path: str) -> None:
    """Their optimizers get the groups and every constant; AdamW stands in for them."""
    stand_in = SimpleNamespace(AdamW8bit=torch.optim.AdamW, Prodigy=torch.optim.AdamW)
    stand_in.optim = stand_in
    monkeypatch.setitem(sys.modules, library, stand_in)
    cfg = TrainConfig(optimizer=name, lr=0.5, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.1)
    built = optimizer.build(cfg, [parameters(1), parameters(1)])
    for group in built.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.8, 0.99), 1e-6, 0.1)


@pytest.mark.parametrize(("dtype", "enabled"), [(torch.float16, True), (torch.bfloat16, False), (torch.float32, False)])
def test_scaler_is_for_fp16_alone(dtype: torch.dtype, enabled: bool) -> None:
    assert optimizer.build_scaler(torch.device("cpu"), dtype).is_enabled() is enabled
