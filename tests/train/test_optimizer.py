"""Steps of a pack's lanes, against torch's own optimizer, clipping and loss scaler, parameter by parameter."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbexp.config.schema import TrainConfig
from dbexp.train import optimizer, step
from dbexp.train.adapter import Adapter, AdapterSlots
from tests import builders

BOTH = {"unet": 4, "text_encoder": 2}
LANES: list[tuple[dict[str, int], TrainConfig]] = [
    (BOTH, TrainConfig(lr=1e-2, text_encoder_lr=3e-3, beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.1)),
    ({"unet": 3}, TrainConfig(lr=1e-3, max_grad_norm=0.0, weight_decay=0.0)),
    ({"unet": 1, "text_encoder": 2}, TrainConfig(lr=3e-3, max_grad_norm=0.5)),
]
"""Ranks and settings: of different parts, rates, constants and limits."""


class Stepped:
    """What `step.of_lanes` knows of a lane."""

    def __init__(self, adapter: Adapter, cfg: TrainConfig, dtype: torch.dtype = torch.float32) -> None:
        self.adapter, self.factor = adapter, 1.0
        self.optimizer = optimizer.build(cfg, adapter)
        self.loss_scale = optimizer.build_loss_scale(torch.device("cpu"), dtype)
        self.limit = torch.tensor(cfg.max_grad_norm or math.inf)
        self.parameters = [parameter for part in adapter.ranks for parameter in adapter.parameters(part)]

    @property
    def rates(self) -> list[float]:
        return [rate * self.factor for rate in self.optimizer.rates]


def pack(dtype: torch.dtype = torch.float32) -> list[Any]:
    """Lanes with weights that are not zero."""
    with AdapterSlots(builders.model(), "attention", len(LANES), BOTH) as slots:
        adapters = [slots.open(n, ranks, dict.fromkeys(ranks, 2.0), seed=n) for n, (ranks, _) in enumerate(LANES)]
    lanes = [Stepped(adapter, cfg, dtype) for adapter, (_, cfg) in zip(adapters, LANES, strict=True)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (parameter for lane in lanes for parameter in lane.parameters):
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return lanes


class Torchs:
    """One lane by torch's own means, with a parameter for each A and B."""

    def __init__(self, lane: Any, cfg: TrainConfig, scaled: bool) -> None:
        self.cfg, self.parts = cfg, []
        for part in lane.adapter.ranks:
            self.parts.append([nn.Parameter(value.detach().clone()) for value in lane.adapter.parameters(part)])
        self.rates = [cfg.lr, cfg.text_encoder_lr or cfg.lr][: len(self.parts)]
        groups = [{"params": part, "lr": lr} for part, lr in zip(self.parts, self.rates, strict=True)]
        self.optimizer = torch.optim.AdamW(
            groups, betas=(cfg.beta1, cfg.beta2), eps=cfg.eps, weight_decay=cfg.weight_decay, fused=True
        )
        self.scaler = torch.amp.GradScaler("cpu", enabled=scaled)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for part in self.parts for parameter in part]

    def step(self, gradients: Sequence[Tensor], factor: float) -> float:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.scaler.scale(torch.ones(()))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.cfg.max_grad_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return float(norm)


def rates(lanes: Sequence[Any]) -> Tensor:
    """Learning rates by slot and part."""
    table = torch.zeros(len(lanes), len(BOTH), dtype=optimizer.rate_dtype(torch.device("cpu")))
    for row, lane in zip(table, lanes, strict=True):
        row[: len(lane.rates)] = torch.tensor(lane.rates)
    return table


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_steps_are_torchs(dtype: torch.dtype, masked: bool) -> None:
    """Under fp16 the second lane overflows at the third of five steps: its scale halves, and it alone stands still. At
    the second it is not due: it is left out, or told to stand, and its gradient stays."""
    scaled = dtype == torch.float16
    lanes = pack(dtype)
    others = [Torchs(lane, cfg, scaled) for lane, (_, cfg) in zip(lanes, LANES, strict=True)]
    starts = [[parameter.detach().clone() for parameter in lane.parameters] for lane in lanes]
    generator = torch.Generator().manual_seed(1)
    for number in range(5):
        due = [0, 2] if number == 1 else [0, 1, 2]  # one accumulates
        expected = []
        waiting = math.inf if scaled else 2.0
        for parameter in lanes[1].parameters if number == 1 else ():
            parameter.grad.fill_(waiting)
        for lane, other in ((lanes[slot], others[slot]) for slot in due):
            lane.factor = 1 / (1 + number)
            gradients = []
            for parameter in lane.parameters:
                gradients.append(1e-2 * torch.randn(parameter.shape, generator=generator))
                if lane.loss_scale is not None:
                    gradients[-1] *= lane.loss_scale.scale
                    if number == 2 and lane is lanes[1]:
                        gradients[-1].fill_(math.inf)
                parameter.grad.copy_(gradients[-1])
            expected.append(other.step(gradients, lane.factor))
        if masked:
            stands = torch.tensor([float(slot not in due) for slot in range(len(lanes))])
            norms = step.of_lanes(lanes, rates(lanes), stands)[due]
        else:
            norms = step.of_lanes([lanes[slot] for slot in due], rates(lanes))
        assert norms.tolist() == pytest.approx(expected, rel=1e-6)
        for lane, other in zip(lanes, others, strict=True):
            for ours, theirs in zip(lane.parameters, other.parameters, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
            assert lane.loss_scale is None or float(lane.loss_scale.scale) == other.scaler.get_scale()
            if lane.adapter.slot in due:
                assert not any(gradient.any() for gradient in lane.adapter.gradients)
            else:
                assert all((parameter.grad == waiting).all() for parameter in lane.parameters)
    assert not scaled or [float(lane.loss_scale.scale) for lane in lanes] == [65536.0, 32768.0, 65536.0]
    for lane, start in zip(lanes, starts, strict=True):
        assert max((a - b).abs().max() for a, b in zip(lane.parameters, start, strict=True)) > 1e-3
        for stack, gradients in zip(lane.adapter.stacks.values(), lane.adapter.gradients, strict=True):
            used = torch.zeros_like(gradients)
            for part in lane.adapter.ranks:
                if lane.adapter.stacks[part] is stack:
                    torch._foreach_add_(lane.adapter.views(part, used), 1.0)
            assert not stack.weights[lane.adapter.slot][used == 0].any(), "what no rank uses stays zero"


def test_a_scale_grows_as_torchs_does() -> None:
    scale, theirs = optimizer.LossScale(torch.device("cpu")), torch.amp.GradScaler("cpu", growth_interval=2000)
    scale.load_state_dict({**theirs.state_dict(), "_growth_tracker": 1998})
    seen = []
    for overflow in (0.0, 0.0, 1.0, 0.0):
        optimizer.update([scale], torch.tensor([overflow]))
        seen.append((float(scale.scale), int(scale.good)))
    assert seen == [(65536, 1999), (131072, 0), (65536, 0), (65536, 1)]


def test_a_state_goes_on_and_one_of_torchs_does_too() -> None:
    """States that were saved before lanes were stepped in one piece are torch's."""
    lanes = pack()
    lane, (_, cfg) = lanes[0], LANES[0]
    other = Torchs(lane, cfg, scaled=False)
    gradients = [torch.full(parameter.shape, 1e-2) for parameter in lane.parameters]

    def once() -> None:
        for parameter, gradient in zip(lane.parameters, gradients, strict=True):
            parameter.grad.copy_(gradient)
        step.of_lanes([lane], rates([lane]))
        other.step(gradients, 1.0)

    once()
    for state in (lane.optimizer.state_dict(), other.optimizer.state_dict()):
        assert [entry.keys() for entry in state["state"].values()] == [{"step", "exp_avg", "exp_avg_sq"}] * len(
            gradients
        )
        lane.optimizer = optimizer.build(cfg, lane.adapter)
        lane.optimizer.load_state_dict(state)
        once()
        for ours, theirs in zip(lane.parameters, other.parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "library", "path"),
    [("adamw8bit", "bitsandbytes", "optim.AdamW8bit"), ("prodigy", "prodigyopt", "Prodigy")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_optional_libraries(
    monkeypatch: pytest.MonkeyPatch, name: str, library: str, path: str, dtype: torch.dtype
) -> None:
    """Their optimizers get the groups and every constant, and step views of the sites; AdamW stands in for them."""
    stand_in = SimpleNamespace(AdamW8bit=torch.optim.AdamW, Prodigy=torch.optim.AdamW)
    stand_in.optim = stand_in
    monkeypatch.setitem(sys.modules, library, stand_in)
    lane, (_, cfg) = pack(dtype)[0], LANES[0]
    plain, built = (
        optimizer.build(cfg, lane.adapter),
        optimizer.build(replace(cfg, optimizer=name), lane.adapter),
    )
    assert isinstance(plain, optimizer.AdamW) and isinstance(built, optimizer.Library)
    for group, lr in zip(built.optimizer.param_groups, (1e-2, 3e-3), strict=True):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (lr, (0.8, 0.99), 1e-6, 0.1)
    assert [len(group["params"]) for group in built.optimizer.param_groups] == [
        len(lane.adapter.parameters(part)) for part in BOTH
    ]
    other, start = Torchs(lane, cfg, dtype == torch.float16), lane.adapter.state()
    lane.optimizer, lane.factor = built, 0.5
    for value in (1e-2, 3e-3, math.inf if dtype == torch.float16 else 1e-3):
        gradients = [torch.full(parameter.shape, value * other.scaler.get_scale()) for parameter in lane.parameters]
        for parameter, gradient in zip(lane.parameters, gradients, strict=True):
            parameter.grad.copy_(gradient)
        step.of_lanes([lane], rates([lane]))
        other.step(gradients, 0.5)
        for ours, theirs in zip(lane.parameters, other.parameters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    state = built.state_dict()
    assert len(state["state"]) == len(lane.parameters)
    assert any(not torch.equal(value, start[key]) for key, value in lane.adapter.state().items())


@pytest.mark.parametrize(("dtype", "scaled"), [(torch.float16, True), (torch.bfloat16, False), (torch.float32, False)])
def test_a_loss_scale_is_for_fp16_alone(dtype: torch.dtype, scaled: bool) -> None:
    assert (optimizer.build_loss_scale(torch.device("cpu"), dtype) is not None) is scaled
