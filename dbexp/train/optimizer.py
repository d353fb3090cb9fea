"""Optimizers of one lane: an ordinary optimizer over views of the lane's parameters, and its loss scaler under fp16."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dbexp.config.schema import TrainConfig


def build(cfg: TrainConfig, parts: Sequence[Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimizer of a lane, one parameter group per part; each group remembers its peak rate as `peak_lr`.

    Args:
        cfg: which optimizer, and its constants.
        parts: trained parameters of the denoiser, then of each part of the text encoder that is trained.
    """
    text_lr = cfg.lr if cfg.text_encoder_lr is None else cfg.text_encoder_lr
    rates = [cfg.lr, *[text_lr] * (len(parts) - 1)]
    groups = [{"params": list(part), "lr": lr, "peak_lr": lr} for part, lr in zip(parts, rates, strict=True)]
    common: dict[str, Any] = {"betas": (cfg.beta1, cfg.beta2), "eps": cfg.eps, "weight_decay": cfg.weight_decay}
    if cfg.optimizer == "adamw":
        # fused: one kernel for all sites, and under fp16 an overflow is skipped without waiting for the device
        return torch.optim.AdamW(groups, lr=cfg.lr, fused=True, **common)
    if cfg.optimizer == "adamw8bit":
        optimizer: torch.optim.Optimizer = importlib.import_module("bitsandbytes").optim.AdamW8bit(groups, **common)
        return optimizer
    optimizer = importlib.import_module("prodigyopt").Prodigy(groups, lr=cfg.lr, **common)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to `factor` times its peak rate; returns the first group's (the denoiser's)."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def build_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """A loss scaler, of this lane alone: an overflow in one lane must not change the step of another.

    It does nothing unless the precision is fp16.
    """
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
