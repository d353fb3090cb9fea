"""One training run as a lane of a pack: its data, its randomness, its adapter, its optimizer, its finish line.

A lane's randomness is a pure function of (seed, stream, microbatch): nothing it draws depends on its neighbours, on the
device, or on how often it was interrupted, and resuming needs no generator states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dbexp.config.schema import Config
from dbexp.core.device import mean_over_processes
from dbexp.core.hashing import seed_of
from dbexp.train import lr_schedule, optimizer
from dbexp.train.adapter import Adapter
from dbexp.train.latents import Bank

Row = dict[str, float]
"""A line of the history: step (1-based), loss, loss_instance, loss_prior, lr, grad_norm."""


@dataclass(frozen=True)
class Training:
    """What one run trains on.

    Attributes:
        config: its settings.
        images, prompt: the subject's pictures and their caption.
        class_images, class_prompt: the same for prior preservation; no pictures without it.
    """

    config: Config
    images: tuple[Path, ...]
    prompt: str
    class_images: tuple[Path, ...]
    class_prompt: str


@dataclass(frozen=True)
class Draw:
    """Everything random about one microbatch of a lane, on the CPU; instance rows first, then class rows.

    Attributes:
        instance, prior: rows of the instance and class banks.
        timesteps: int64 [n].
        noise, latent_noise: fp32 [n, C, h, w].
    """

    instance: list[int]
    prior: list[int]
    timesteps: Tensor
    noise: Tensor
    latent_noise: Tensor


def schedule_of_pictures(micro: int, instances: int, priors: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """(picture, class picture) of each row of a microbatch.

    An epoch goes once through max(instances, priors) items in random order; item i pairs picture i % instances with
    class picture i % priors. The last microbatch of an epoch may be smaller. Without class pictures the second is 0.
    """
    items = max(instances, priors)
    epoch, place = divmod(micro, math.ceil(items / batch_size))
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    order = torch.randperm(items, generator=generator).tolist()
    chosen = order[place * batch_size : (place + 1) * batch_size]
    return [(item % instances, item % priors if priors else 0) for item in chosen]


class Lane:
    """A run in progress.

    Args:
        task: what it trains on.
        instance, prior: latents of its pictures; prior None without prior preservation.
        texts: text states [1 or 2, L, D] of the instance prompt (and the class prompt) when the text encoder is frozen;
            token ids [1 or 2, L] when it is trained.
        train_timesteps: of the model's forward process.
        process, processes: which of how many processes this is; each draws microbatches of its own.
    """

    def __init__(
        self,
        task: Training,
        instance: Bank,
        prior: Bank | None,
        texts: Tensor,
        train_timesteps: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.task, self.texts = task, texts
        self.instance, self.prior = instance, prior
        self.train, self.steps = task.config.train, task.config.train.steps
        self.trains_text = task.config.lora.text_encoder
        self.micro = 0
        """Microbatches done, on this process."""
        self.history: list[Row] = []
        self.diverged_at: int | None = None
        self._timesteps = train_timesteps
        self._process, self._processes = process, processes
        self._losses: list[tuple[float, float]] = []
        self._norms: list[Tensor] = []

    # -- data -------------------------------------------------------------------------------------------------------

    def draw(self) -> Draw:
        """The next microbatch."""
        seeds = self.task.config.seeds
        micro = self.micro * self._processes + self._process
        priors = len(self.prior) if self.prior is not None else 0
        chosen = schedule_of_pictures(micro, len(self.instance), priors, self.train.batch_size, seeds.data)
        banks = [("instance", self.instance, [picture for picture, _ in chosen])]
        if self.prior is not None:
            banks.append(("prior", self.prior, [picture for _, picture in chosen]))
        rows: dict[str, list[int]] = {"instance": [], "prior": []}
        timesteps, noises, latent_noises = [], [], []
        for name, bank, pictures in banks:
            views = torch.Generator().manual_seed(seed_of(seeds.data, "view", name, micro))
            for picture in pictures:
                view = int(torch.randint(bank.views(picture), (1,), generator=views))
                rows[name].append(bank.first[picture] + view)
            # instance and class have streams of their own, so that runs with and without prior share the first
            generator = torch.Generator().manual_seed(seed_of(seeds.noise, name, micro))
            shape = (len(pictures), *bank.mean.shape[1:])
            timesteps.append(torch.randint(self._timesteps, shape[:1], generator=generator))
            latent_noises.append(torch.randn(shape, generator=generator))
            noise = torch.randn(shape, generator=generator)
            if self.train.noise_offset:
                noise += self.train.noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
            noises.append(noise)
        return Draw(rows["instance"], rows["prior"], torch.cat(timesteps), torch.cat(noises), torch.cat(latent_noises))

    def latents(self, draw: Draw, latent_noise: Tensor) -> Tensor:
        """Latents [n, C, h, w] of a microbatch; `latent_noise` is the draw's, on the training device."""
        mean, std = self.instance.mean[draw.instance], self.instance.std[draw.instance]
        if self.prior is not None:
            mean = torch.cat([mean, self.prior.mean[draw.prior]])
            std = torch.cat([std, self.prior.std[draw.prior]])
        return mean + std * latent_noise if self.train.sample_latents else mean

    def coefficients(self, draw: Draw) -> list[float]:
        """Weight of each row in the lane's loss: mean(instance) + weight * mean(class), over the accumulated passes."""
        weight = self.task.config.prior.weight
        instance = [1 / len(draw.instance)] * len(draw.instance)
        prior = [weight / len(draw.prior) for _ in draw.prior]
        return [value / self.train.grad_accum for value in (*instance, *prior)]

    # -- steps ------------------------------------------------------------------------------------------------------

    def begin(self, adapter: Adapter, device: torch.device, dtype: torch.dtype) -> None:
        """Take a slot's adapter and start from its initial weights."""
        self.adapter = adapter
        self.scaler = optimizer.build_scaler(device, dtype)
        unet, text = adapter.parameters("unet"), adapter.parameters("text_encoder")
        self.parameters: list[nn.Parameter] = [*unet, *text]
        self.optimizer = optimizer.build(self.train, unet, text)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.micro // self.train.grad_accum

    @property
    def running(self) -> bool:
        """Whether there is more to do."""
        return self.step < self.steps and self.diverged_at is None

    def after_backward(self) -> bool:
        """Count a microbatch whose gradient was added; make the optimizer step if it was the last of one.

        Returns:
            Whether a step was made.
        """
        self.micro += 1
        if self.micro % self.train.grad_accum:
            return False
        cfg = self.task.config
        factor = lr_schedule.factor(self.step - 1, cfg.lr_schedule, steps=self.steps, peak_lr=self.train.lr)
        optimizer.set_lr(self.optimizer, factor)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        mean_over_processes(gradients)
        self.scaler.unscale_(self.optimizer)
        limit = self.train.max_grad_norm or math.inf
        self._norms.append(nn.utils.clip_grad_norm_(self.parameters, limit))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        torch._foreach_zero_(gradients)
        return True

    def absorb(self, losses: list[tuple[float, float]]) -> list[Row]:
        """Turn (instance, class) losses of microbatches, now on the host, into history rows of whole steps.

        Returns:
            The new rows. If loss or gradient of one is not finite, the lane is marked as diverged and the rest dropped.
        """
        self._losses += losses
        accum, rows = self.train.grad_accum, []
        while len(self._losses) >= accum and self.diverged_at is None:
            group, self._losses = self._losses[:accum], self._losses[accum:]
            instance = sum(pair[0] for pair in group) / accum
            prior = sum(pair[1] for pair in group) / accum
            step = len(self.history) + 1
            cfg = self.task.config
            factor = lr_schedule.factor(step - 1, cfg.lr_schedule, steps=self.steps, peak_lr=self.train.lr)
            row: Row = {"step": step, "loss": instance + cfg.prior.weight * prior, "loss_instance": instance}
            if self.prior is not None:
                row["loss_prior"] = prior
            row |= {"lr": self.train.lr * factor, "grad_norm": float(self._norms.pop(0))}
            # without a loss scaler, which skips such steps, a gradient that is not finite has ruined the weights
            ruined = not self.scaler.is_enabled() and not math.isfinite(row["grad_norm"])
            if ruined or not math.isfinite(row["loss"]):
                self.diverged_at = step
            else:
                self.history.append(row)
                rows.append(row)
        return rows

    # -- state ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from the last microbatch, exactly; its losses must have come from the device."""
        accumulating = self.micro % self.train.grad_accum > 0
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return {
            "micro": self.micro,
            "adapter": self.adapter.state(),
            "gradients": [gradient.cpu().clone() for gradient in gradients] if accumulating else [],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "history": self.history,
            "losses": self._losses,
            "diverged_at": self.diverged_at,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.micro = int(state["micro"])
        self.adapter.load_state(state["adapter"])
        with torch.no_grad():
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            for gradient, kept in zip(gradients, state["gradients"], strict=False):  # none between two steps
                gradient.copy_(kept)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.history = list(state["history"])
        self._losses = [(float(instance), float(prior)) for instance, prior in state["losses"]]
        self.diverged_at = state["diverged_at"]
