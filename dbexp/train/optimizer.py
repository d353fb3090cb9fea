"""What steps a lane: AdamW in one kernel over all sites, or a library's optimizer; and under fp16 its loss scale.

What changes from step to step is a tensor where the lane is: a step of AdamW can be recorded once and launched again.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from dbexp.config.schema import TrainConfig
from dbexp.train.adapter import Adapter, host_copy

_MOMENTS = ("exp_avg", "exp_avg_sq")
_GROWTH, _BACKOFF, _INTERVAL = 2.0, 0.5, 2000


def build(cfg: TrainConfig, adapter: Adapter) -> AdamW | Library:
    """The optimizer of a lane: the denoiser at one peak rate, all parts of the text encoder at another."""
    if cfg.optimizer == "adamw":
        return AdamW(cfg, adapter)
    rates, parts = _rates(cfg, adapter), [adapter.parameters(part) for part in adapter.ranks]
    groups = [{"params": part, "lr": lr} for part, lr in zip(parts, rates, strict=True)]
    common: dict[str, Any] = {"betas": (cfg.beta1, cfg.beta2), "eps": cfg.eps, "weight_decay": cfg.weight_decay}
    if cfg.optimizer == "adamw8bit":
        return Library(importlib.import_module("bitsandbytes").optim.AdamW8bit(groups, **common), rates)
    return Library(importlib.import_module("prodigyopt").Prodigy(groups, lr=cfg.lr, **common), rates)


def rate_dtype(device: torch.device) -> torch.dtype:
    """Of learning rates: what torch's kernel reads them as, which on a CPU is a number of Python."""
    return torch.float64 if device.type == "cpu" else torch.float32


def _rates(cfg: TrainConfig, adapter: Adapter) -> list[float]:
    """The peak learning rate of every part."""
    text_lr = cfg.lr if cfg.text_encoder_lr is None else cfg.text_encoder_lr
    return [cfg.lr, *[text_lr] * (len(adapter.ranks) - 1)]


class AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101): torch's fused kernel, once for all sites of a part.

    A step is skipped without waiting for the device. Its state reads as that of torch's optimizer with a parameter
    for each A and B of every site, whatever rank the stack has room for.

    Attributes:
        rates: the peak learning rate of every part.
    """

    def __init__(self, cfg: TrainConfig, adapter: Adapter) -> None:
        self._cfg, self._adapter, self.rates = cfg, adapter, _rates(cfg, adapter)
        self._moments = {part: [torch.zeros_like(row) for _ in _MOMENTS] for part, row in adapter.rows.items()}
        self._steps = {part: row.new_zeros(()) for part, row in adapter.rows.items()}

    @torch.no_grad()
    def step(self, rates: Tensor, divisor: Tensor, skip: Tensor | None) -> None:
        """Make a step with the gradients that the adapter has.

        Args:
            rates: of every part, [parts] or more; see `rate_dtype`.
            divisor: fp32 [], which gradients are divided by first.
            skip: fp32 [], 1: leave everything as it is; None: never.
        """
        cfg = self._cfg
        for (part, row), rate in zip(self._adapter.rows.items(), rates.unbind(), strict=False):
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
                found_inf=skip,
                amsgrad=False,
                beta1=cfg.beta1,
                beta2=cfg.beta2,
                lr=rate,
                weight_decay=cfg.weight_decay,
                eps=cfg.eps,
                maximize=False,
            )

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` goes on from, on the CPU."""
        state: list[dict[str, Tensor]] = []
        for part, moments in self._moments.items():
            step = host_copy(self._steps[part])
            views = (self._adapter.views(part, host_copy(moment)) for moment in moments)
            state += [{"step": step, **dict(zip(_MOMENTS, pair, strict=True))} for pair in zip(*views, strict=True)]
        return {"state": dict(enumerate(state))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
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
    """A library's optimizer over the parameters of the sites, a group for each part. It takes rates as numbers of
    Python, and cannot skip a step but by waiting for the device; its methods and attributes are otherwise AdamW's."""

    def __init__(self, optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
        self.optimizer, self.rates = optimizer, rates

    def step(self, rates: Sequence[float], divisor: Tensor, skip: Tensor | None) -> None:
        if skip is not None and bool(skip):
            return
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
            torch._foreach_div_([parameter.grad for parameter in group["params"]], divisor)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # a state of before has the peak rates of its groups, too, which torch carries along
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


def update(scales: Sequence[LossScale], overflows: Tensor, stands: Tensor | None = None) -> None:
    """After a step: halve the scale where it overflowed, double it where it is time to.

    Args:
        overflows: where, fp32 [n] of 0 and 1.
        stands: 1 where no step was due, fp32 [n]; None: nowhere.
    """
    before, counted = torch.stack([each.scale for each in scales]), torch.stack([each.good for each in scales])
    good = counted + 1
    grown = (good == _INTERVAL) & (overflows == 0)
    scale = torch.where(overflows > 0, before * _BACKOFF, torch.where(grown, before * _GROWTH, before))
    good = torch.where((overflows > 0) | grown, torch.zeros_like(good), good)
    if stands is not None:
        scale, good = torch.where(stands > 0, before, scale), torch.where(stands > 0, counted, good)
    torch._foreach_copy_([each.scale for each in scales], list(scale.unbind()))
    torch._foreach_copy_([each.good for each in scales], list(good.unbind()))
