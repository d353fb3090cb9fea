"""One training as a lane of a pack: its randomness, its adapter, its optimizer, its way through steps.

A lane's randomness is a pure function of (seed, stream, microbatch): nothing it draws depends on its neighbours, on the
device, or on how often it was interrupted, and resuming needs no generator states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dbexp.core.device import processes
from dbexp.core.hashing import seed_of
from dbexp.models import Model, lora_file
from dbexp.train import accumulation, lr_schedule, optimizer
from dbexp.train.adapter import Adapter, AdapterSlots, host_copy
from dbexp.train.data import Training, TrainingData

Row = dict[str, float]
"""A line of the history: step (1-based), loss, loss_instance, loss_prior, lr, grad_norm."""


@dataclass(frozen=True)
class Draw:
    """Everything random about one microbatch of a lane, on the CPU; instance rows first, then class rows.

    Attributes:
        instance, prior: rows of the instance and class banks.
        times: [n], as the model draws them.
        noise, latent_noise: fp32 [n, C, h, w].
    """

    instance: list[int]
    prior: list[int]
    times: Tensor
    noise: Tensor
    latent_noise: Tensor

    def __len__(self) -> int:
        """Rows."""
        return len(self.times)


def schedule_of_pictures(micro: int, instances: int, priors: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """(picture, class picture) of each row of a microbatch.

    An epoch goes once through max(instances, priors) items in random order; item i pairs picture i % instances with
    class picture i % priors. The last microbatch of an epoch may be smaller. Without class pictures the second is 0.
    """
    items = max(instances, priors)
    epoch, batch = divmod(micro, math.ceil(items / batch_size))
    generator = torch.Generator().manual_seed(seed_of(seed, "order", epoch))
    order = torch.randperm(items, generator=generator).tolist()
    items_of_batch = order[batch * batch_size : (batch + 1) * batch_size]
    return [(item % instances, item % priors if priors else 0) for item in items_of_batch]


class Lane:
    """A training in progress.

    Args:
        data: what it trains on.
        adapter: its slot's, with initial weights.
        model: the frozen base.
        process, processes: which of how many processes this is; each draws microbatches of its own.

    Attributes:
        training, cfg: settings.
        accumulation: which passes make a step.
        micro: microbatches done, on this process.
        history: a row per optimizer step whose losses have come from the device.
        diverged_at: step whose loss or gradient was not finite; None: in good health.
        optimizer, loss_scale, limit: what `dbexp.train.step` steps it with: the last is the longest gradient, fp32 [].
    """

    def __init__(
        self, data: TrainingData, adapter: Adapter, model: Model, process: int = 0, processes: int = 1
    ) -> None:
        self.data, self.adapter, self._model = data, adapter, model
        self._process, self._processes = process, processes
        self.training, self.cfg = data.training, data.training.cfg
        self.accumulation = accumulation.of(self.cfg, len(data.instance), len(data.prior or ()), processes)
        self.parameters: list[nn.Parameter] = [p for part in adapter.ranks for p in adapter.parameters(part)]
        self.optimizer = optimizer.build(self.cfg, adapter)
        self.loss_scale = optimizer.build_loss_scale(model.device, model.dtype)
        self.limit = torch.tensor(self.cfg.max_grad_norm or math.inf, device=model.device)
        self.micro = 0
        self.history: list[Row] = []
        self.diverged_at: int | None = None
        self._losses: list[tuple[float, float]] = []
        self._norms: list[float] = []

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.cfg.steps

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.accumulation.steps(self.micro)

    @property
    def running(self) -> bool:
        """Whether there is more to do."""
        return self.step < self.steps and self.diverged_at is None

    @property
    def between_steps(self) -> bool:
        """Whether it stands, in good health, between two optimizer steps."""
        return self.diverged_at is None and self.accumulation.between(self.micro)

    # -- data -------------------------------------------------------------------------------------------------------

    def draw(self) -> Draw:
        """The next microbatch."""
        seeds, micro = self.training.seeds, self.micro * self._processes + self._process
        instance, prior = self.data.instance, self.data.prior
        microbatch = self.accumulation.microbatch(self.micro, self._process, self._processes)
        pairs = schedule_of_pictures(microbatch, len(instance), len(prior or ()), self.cfg.batch_size, seeds.data)
        banks = [("instance", instance, [picture for picture, _ in pairs])]
        if prior is not None:
            banks.append(("prior", prior, [picture for _, picture in pairs]))
        rows: dict[str, list[int]] = {"instance": [], "prior": []}
        times, noises, latent_noises = [], [], []
        for name, bank, pictures in banks:
            views = torch.Generator().manual_seed(seed_of(seeds.data, "view", name, micro))
            for picture in pictures:
                view = int(torch.randint(bank.views(picture), (1,), generator=views))
                rows[name].append(bank.first[picture] + view)
            # instance and class have streams of their own, so that runs with and without prior share the first
            generator = torch.Generator().manual_seed(seed_of(seeds.noise, name, micro))
            shape = (len(pictures), *bank.mean.shape[1:])
            times.append(self._model.draw_times(len(pictures), generator, self.cfg, self.training.resolution))
            latent_noises.append(torch.randn(shape, generator=generator))
            noise = torch.randn(shape, generator=generator)
            if self.cfg.noise_offset:
                noise += self.cfg.noise_offset * torch.randn(*shape[:2], 1, 1, generator=generator)
            noises.append(noise)
        return Draw(rows["instance"], rows["prior"], torch.cat(times), torch.cat(noises), torch.cat(latent_noises))

    # -- steps ------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether an optimizer step follows the next microbatch."""
        return self.accumulation.between(self.micro + 1)

    @property
    def rates(self) -> list[float]:
        """The learning rate of every part at the next optimizer step."""
        factor = self._lr_factor(self.step + 1)
        return [rate * factor for rate in self.optimizer.rates]

    def _lr_factor(self, step: int) -> float:
        """The same at a 1-based optimizer step."""
        return lr_schedule.factor(step - 1, self.training.lr_schedule, steps=self.steps, peak_lr=self.cfg.lr)

    def absorb(self, losses: Sequence[tuple[float, float]], norms: Sequence[float]) -> list[Row]:
        """Turn what came from the device into history rows of whole steps.

        Args:
            losses: (instance, class) of microbatches.
            norms: of the gradients of optimizer steps.

        Returns:
            The new rows. If loss or gradient of one is not finite, the lane is marked as diverged and the rest dropped.
        """
        self._losses += losses
        self._norms += norms
        rows: list[Row] = []
        while self.diverged_at is None:
            step = len(self.history) + 1
            passes = self.accumulation.of_step(step)
            if len(self._losses) < passes:
                break
            group, self._losses = self._losses[:passes], self._losses[passes:]
            row = self._row(step, group)
            # without a loss scaler, which skips such steps, a gradient that is not finite has ruined the weights
            ruined = self.loss_scale is None and not math.isfinite(row["grad_norm"])
            if ruined or not math.isfinite(row["loss"]):
                self.diverged_at = int(row["step"])
            else:
                self.history.append(row)
                rows.append(row)
        return rows

    def _row(self, step: int, losses: list[tuple[float, float]]) -> Row:
        """The history row of a step from the losses of its microbatches; takes the oldest gradient norm."""
        instance = sum(pair[0] for pair in losses) / len(losses)
        prior = sum(pair[1] for pair in losses) / len(losses)
        row: Row = {"step": step, "loss": instance + self.training.prior_weight * prior, "loss_instance": instance}
        if self.data.prior is not None:
            row["loss_prior"] = prior
        return row | {"lr": self.cfg.lr * self._lr_factor(step), "grad_norm": self._norms.pop(0)}

    # -- state ------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything needed to go on from the last microbatch, exactly; its losses must have come from the device."""
        accumulating = not self.accumulation.between(self.micro)
        return {
            "micro": self.micro,
            "adapter": self.adapter.state(),
            "gradients": self._gradients() if accumulating else [],
            "optimizer": self.optimizer.state_dict(),
            "scaler": {} if self.loss_scale is None else self.loss_scale.state_dict(),
            "history": self.history,
            "losses": self._losses,
            "diverged_at": self.diverged_at,
        }

    def _gradients(self) -> list[Tensor]:
        """Of `parameters`, on the CPU."""
        return [view for part, row in self._gradient_rows() for view in self.adapter.views(part, host_copy(row))]

    def _gradient_rows(self) -> list[tuple[str, Tensor]]:
        return [(part, row.grad) for part, row in self.adapter.rows.items() if row.grad is not None]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.micro = int(state["micro"])
        self.adapter.load_state(state["adapter"])
        gradients = iter(state["gradients"])  # none between two steps
        for part, row in self._gradient_rows() if state["gradients"] else ():
            values = host_copy(row)
            for view in self.adapter.views(part, values):
                view.copy_(next(gradients))
            row.copy_(values)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.loss_scale is not None:
            self.loss_scale.load_state_dict(state["scaler"])
        self.history = list(state["history"])
        self._losses = [(float(instance), float(prior)) for instance, prior in state["losses"]]
        self.diverged_at = state["diverged_at"]


# -- slots ------------------------------------------------------------------------------------------------------------


def ranks_of(trainings: Sequence[Training], model: Model) -> dict[str, int]:
    """Part -> rank that slots for these trainings must have room for."""
    ranks: dict[str, int] = {}
    for training in trainings:
        for part, rank in training.ranks(model.family).items():
            ranks[part] = max(rank, ranks.get(part, 0))
    return ranks


def open_slots(data: Sequence[TrainingData], model: Model, ranks: Mapping[str, int] | None = None) -> AdapterSlots:
    """Slots for lanes, each empty still; gradient checkpointing is switched as the lanes want it.

    Args:
        data: of the lanes, one for each slot.
        model: the frozen base.
        ranks: part -> rank that slots have room for; None: as the lanes need.
    """
    trainings = [entry.training for entry in data]
    slots = AdapterSlots(model, trainings[0].lora.sites, len(data), ranks or ranks_of(trainings, model))
    model.enable_gradient_checkpointing(trainings[0].cfg.gradient_checkpointing)
    return slots


def enter(slots: AdapterSlots, slot: int, data: TrainingData, model: Model) -> Lane:
    """A lane in its slot, with the weights that its training begins with."""
    training = data.training
    ranks = training.ranks(model.family)
    alphas = {part: training.lora.alpha or float(rank) for part, rank in ranks.items()}
    begin = None if training.start is None else lora_file.read(training.start.path, model).updates()
    return Lane(data, slots.open(slot, ranks, alphas, training.seeds.init, begin), model, *processes())
