"""What steps a lane: AdamW in one kernel over all sites, or a library's optimizer; and under fp16 its loss scale."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from dbexp.config.schema import TrainConfig
from dbexp.train.adapter import Adapter, host_copy

_MOMENTS = ("exp_avg", "exp_avg_sq")
_GROWTH, _BACKOFF, _INTERVAL = 2.0, 0.5, 2000


class Optimizer(Protocol):
    """Steps the adapter of one lane."""

    def step(self, factor: float, divisor: Tensor, overflow: Tensor | None) -> None:
        """Make a step with the gradients that the adapter has; they may be changed on the way.

        Args:
            factor: of every peak learning rate.
            divisor: fp32 [], which gradients are divided by first.
            overflow: fp32 [], 1: leave everything as it is; None: never.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from, on the CPU."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        ...


def build(cfg: TrainConfig, adapter: Adapter) -> Optimizer:
    """The optimizer of a lane: the denoiser at one peak rate, all parts of the text encoder at another."""
    if cfg.optimizer == "adamw":
        return AdamW(cfg, adapter)
    parts = [adapter.parameters(part) for part in adapter.ranks]
    groups = [{"params": part, "lr": lr, "peak_lr": lr} for part, lr in zip(parts, _rates(cfg, adapter), strict=True)]
    common: dict[str, Any] = {"betas": (cfg.beta1, cfg.beta2), "eps": cfg.eps, "weight_decay": cfg.weight_decay}
    if cfg.optimizer == "adamw8bit":
        return Library(importlib.import_module("bitsandbytes").optim.AdamW8bit(groups, **common))
    return Library(importlib.import_module("prodigyopt").Prodigy(groups, lr=cfg.lr, **common))


def _rates(cfg: TrainConfig, adapter: Adapter) -> list[float]:
    """The peak learning rate of every part."""
    text_lr = cfg.lr if cfg.text_encoder_lr is None else cfg.text_encoder_lr
    return [cfg.lr, *[text_lr] * (len(adapter.ranks) - 1)]


class AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101): torch's fused kernel, once for all sites of a part.

    An overflow is skipped without waiting for the device. Its state reads as that of torch's optimizer with a parameter
    for each A and B of every site, whatever rank the stack has room for.
    """

    def __init__(self, cfg: TrainConfig, adapter: Adapter) -> None:
        self._cfg, self._adapter, self.rates = cfg, adapter, _rates(cfg, adapter)
        self._moments = {part: [torch.zeros_like(row) for _ in _MOMENTS] for part, row in adapter.rows.items()}
        self._steps = {part: row.new_zeros(()) for part, row in adapter.rows.items()}

    @torch.no_grad()
    def step(self, factor: float, divisor: Tensor, overflow: Tensor | None) -> None:
        cfg = self._cfg
        for (part, row), rate in zip(self._adapter.rows.items(), self.rates, strict=True):
            assert row.grad is not None
            mean, square = self._moments[part]
            adamw(
                [row],
                [row.grad],
                [mean],
                [square],
                [],
                [self._steps[part]],
                fused=True,
                grad_scale=divisor,
                found_inf=overflow,
                amsgrad=False,
                beta1=cfg.beta1,
                beta2=cfg.beta2,
                lr=rate * factor,
                weight_decay=cfg.weight_decay,
                eps=cfg.eps,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        state: list[dict[str, Tensor]] = []
        for part, moments in self._moments.items():
            step = host_copy(self._steps[part])
            views = (self._adapter.views(part, host_copy(moment)) for moment in moments)
            state += [{"step": step, **dict(zip(_MOMENTS, pair, strict=True))} for pair in zip(*views, strict=True)]
        return {"state": dict(enumerate(state))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        entries = iter(state["state"][index] for index in sorted(state["state"]))
        if not state["state"]:  # no step was made
            return
        for part, moments in self._moments.items():
            rows = [host_copy(moment).zero_() for moment in moments]
            for views in zip(*(self._adapter.views(part, row) for row in rows), strict=True):
                entry = next(entries)
                for name, view in zip(_MOMENTS, views, strict=True):
                    view.copy_(entry[name])
            for moment, row in zip(moments, rows, strict=True):
                moment.copy_(row)
            self._steps[part].copy_(entry["step"])


class Library:
    """A library's optimizer over the parameters of the sites, whose groups remember their peak rate as `peak_lr`."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, factor: float, divisor: Tensor, overflow: Tensor | None) -> None:
        if overflow is not None and bool(overflow):  # waits for the device: these have no way to skip without
            return
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
            torch._foreach_div_([parameter.grad for parameter in group["params"]], divisor)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state)


class LossScale:
    """What the losses of one lane are multiplied by under fp16, and its gradients divided by: halved by an overflow,
    doubled after 2000 steps without one, as torch's GradScaler does. An overflow in one lane moves no other lane's.

    Attributes:
        scale: fp32 [].
        good: steps since an overflow or a growth, fp32 [].
    """

    def __init__(self, device: torch.device) -> None:
        self.scale = torch.tensor(2.0**16, device=device)
        self.good = torch.zeros((), device=device)

    def state_dict(self) -> dict[str, Any]:
        """As that of GradScaler."""
        return {"scale": float(self.scale), "_growth_tracker": int(self.good)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.scale.fill_(state["scale"])
        self.good.fill_(state["_growth_tracker"])


def build_loss_scale(device: torch.device, dtype: torch.dtype) -> LossScale | None:
    """None unless the precision is fp16."""
    return LossScale(device) if dtype == torch.float16 else None


def update(scales: Sequence[LossScale], overflows: Tensor) -> None:
    """After a step: halve the scale where it overflowed, fp32 [n] of 0 and 1; double it where it is time to."""
    scale, good = torch.stack([each.scale for each in scales]), torch.stack([each.good for each in scales]) + 1
    grown = (good == _INTERVAL) & (overflows == 0)
    scale = torch.where(overflows > 0, scale * _BACKOFF, torch.where(grown, scale * _GROWTH, scale))
    good = torch.where((overflows > 0) | grown, torch.zeros_like(good), good)
    torch._foreach_copy_([each.scale for each in scales], list(scale.unbind()))
    torch._foreach_copy_([each.good for each in scales], list(good.unbind()))
