"""Optimizers of one lane: an ordinary optimizer over views of the lane's parameters, and its loss scaler under fp16."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dbexp.config.schema import TrainConfig


def build(
    cfg: TrainConfig, unet: Sequence[nn.Parameter], text_encoder: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """The optimizer of a lane, one parameter group per part; each group remembers its peak rate as `peak_lr`.

    Args:
        cfg: which optimizer, and its constants.
        unet, text_encoder: trained parameters; the second may be empty.
    """
    text_lr = cfg.lr if cfg.text_encoder_lr is None else cfg.text_encoder_lr
    groups: list[dict[str, Any]] = [{"params": list(unet), "lr": cfg.lr, "peak_lr": cfg.lr}]
    if text_encoder:
        groups.append({"params": list(text_encoder), "lr": text_lr, "peak_lr": text_lr})
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
    """Set every group to `factor` times its peak rate; returns the first group's (the UNet's)."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def build_scaler(device: torch.device, dtype: torch.dtype) -> torch.amp.GradScaler:
    """A loss scaler, of this lane alone: an overflow in one lane must not change the step of another.

    It does nothing unless the precision is fp16.
    """
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
