"""The forward process of flow matching (Lipman et al., arXiv 2210.02747; Esser et al., arXiv 2403.03206, section 2).

z_s = (1 - s) z + s eps for shares of noise s in (0, 1]; the denoiser predicts the velocity eps - z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dbexp.config.schema import BY_RESOLUTION, TrainConfig
from dbexp.models.known import POSITIVE

_PATCH = 16
"""Pixels that a token is wide and high: 8 of a latent, 2 latents of a patch."""
KNOWN_SCHEDULES: dict[str, tuple[Any, ...]] = {
    "_class_name": ("FlowMatchEulerDiscreteScheduler",),
    "num_train_timesteps": (1000,),
    "shift": (POSITIVE,),
    "invert_sigmas": (False,),
    "use_dynamic_shifting": (False, True),
}
"""Settings of samplers whose noise is a share, which pipelines count in thousandths."""


def shifted(shares: Tensor, shift: float) -> Tensor:
    """k s / (1 + (k - 1) s): more noise for k > 1 (Esser et al., equation 23)."""
    return shift * shares / (1 + (shift - 1) * shares)


def shift_of_resolution(resolution: int, scheduler: dict[str, Any]) -> float:
    """The shift e^mu that a pipeline samples with, mu linear in the number of image tokens.

    Args:
        resolution: width and height in pixels.
        scheduler: settings of FlowMatchEulerDiscreteScheduler.
    """
    base, most = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    first, last = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    tokens = (resolution // _PATCH) ** 2
    return math.exp(base + (most - base) * (tokens - first) / (last - first))


class FlowMatching:
    """Times are shares of noise, fp32."""

    _settings: Callable[..., dict[str, Any]]

    def draw_times(self, count: int, generator: torch.Generator, cfg: TrainConfig, resolution: int) -> Tensor:
        if cfg.timesteps == "logit_normal":
            shares = torch.sigmoid(cfg.logit_mean + cfg.logit_std * torch.randn(count, generator=generator))
        else:
            shares = 1 - torch.rand(count, generator=generator)
        return shifted(shares, self.shift(cfg.shift, resolution))

    def shift(self, shift: float | str | None, resolution: int) -> float:
        """The number that `train.shift` stands for: null is the checkpoint's own, where it has a fixed one."""
        if isinstance(shift, (int, float)):
            return float(shift)
        scheduler = self._settings("scheduler", "scheduler_config.json")
        if shift == BY_RESOLUTION:
            return self.resolution_shift(resolution, scheduler)
        return 1.0 if scheduler.get("use_dynamic_shifting") else float(scheduler.get("shift", 1.0))

    def resolution_shift(self, resolution: int, scheduler: dict[str, Any]) -> float:
        """See `shift_of_resolution`; for families whose pipelines have another rule."""
        return shift_of_resolution(resolution, scheduler)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        shares = times.reshape(-1, 1, 1, 1)
        return (1 - shares) * latents + shares * noise

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return noise - latents

    def loss_weight(self, times: Tensor, cfg: TrainConfig) -> Tensor | None:
        return None
