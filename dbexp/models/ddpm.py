"""The forward process of Stable Diffusion (Ho et al., DDPM, arXiv 2006.11239): a thousand steps of a noise schedule."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dbexp.config.schema import TrainConfig
from dbexp.models.checkpoint import library
from dbexp.models.known import POSITIVE, WHOLE, Settings

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

KNOWN_SCHEDULES: dict[str, tuple[Any, ...]] = {
    "_class_name": (
        "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
        "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
        "PNDMScheduler", "UniPCMultistepScheduler",
    ),
    "prediction_type": ("epsilon", "v_prediction"),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "beta_start": (POSITIVE,),
    "beta_end": (POSITIVE,),
    "num_train_timesteps": (WHOLE,),
    "timestep_type": ("discrete",),
    "use_flow_sigmas": (False, None),
}  # fmt: skip
"""Settings of samplers whose noise schedule is `DDPMScheduler`'s."""


def schedule_disagreements(settings: Settings) -> Iterator[tuple[str, str]]:
    """See `Checkpoint.disagreements`."""
    schedule = settings["scheduler"]
    steps, betas = schedule.get("num_train_timesteps", 1000), schedule.get("trained_betas")
    if betas is not None and not (isinstance(betas, list) and len(betas) == steps):
        yield "scheduler", f"has trained_betas that are not one for each of {steps} steps"


class DiscreteNoise:
    """z_t = sqrt(a_t) z + sqrt(1 - a_t) eps for int64 steps t, a the running product of the schedule's alphas."""

    _folder: Path

    @cached_property
    def _noise(self) -> DDPMScheduler:
        folder = self._folder / "scheduler"
        noise: DDPMScheduler = library("diffusers").DDPMScheduler.from_pretrained(folder, local_files_only=True)
        return noise

    @cached_property
    def _products(self) -> Tensor:
        """a [T] on the CPU, where times are drawn: the scheduler's goes wherever latents are."""
        alphas: Tensor = self._noise.alphas_cumprod.cpu()
        return alphas

    def draw_times(self, count: int, generator: torch.Generator, cfg: TrainConfig, resolution: int) -> Tensor:
        steps = int(self._noise.config.num_train_timesteps)
        if cfg.timesteps == "logit_normal":
            shares = torch.sigmoid(cfg.logit_mean + cfg.logit_std * torch.randn(count, generator=generator))
            return (shares * steps).long().clamp(max=steps - 1)
        return torch.randint(steps, (count,), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        noisy: Tensor = self._noise.add_noise(latents, noise, times)
        return noisy

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self._noise.config.prediction_type == "epsilon":
            return noise
        velocity: Tensor = self._noise.get_velocity(latents, noise, times)
        return velocity

    def loss_weight(self, times: Tensor, cfg: TrainConfig) -> Tensor | None:
        """Min-SNR-gamma weights (Hang et al., arXiv 2303.09556, section 3.4) for this checkpoint's target."""
        if cfg.min_snr_gamma is None:
            return None
        alphas = self._products.to(times.device)[times]
        snr = alphas / (1 - alphas)
        least = snr.clamp(max=cfg.min_snr_gamma)
        if self._noise.config.prediction_type == "epsilon":
            return torch.where(snr > 0, least / snr, 1.0)  # a schedule may end in noise alone
        weight: Tensor = least / (snr + 1)
        return weight
