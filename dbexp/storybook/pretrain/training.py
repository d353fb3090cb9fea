"""The loop that every pre-training stage shares: schedule, EMA, atomic checkpoints, a JSONL log.

Progress is counted in samples, not steps. Data and noise of a step follow from (seed, stage, samples seen), so that a
stage that was killed and resumed goes through exactly the batches of one that was not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dbexp.core.errors import ConfigError
from dbexp.storybook.pretrain.muon import Muon

CHECKPOINT = "checkpoint.pt"
"""The state of a stage, in its folder."""
CHECKPOINT_SECONDS = 120.0
LOG_SECONDS = 20.0
WARMUP_STEPS = 100
_OUTER = ("embed", "cls_token", "classifier", "text_projection", "visual.proj")
"""Parts of the names of matrices that are no maps between hidden states: rows are looked up, or outputs scored."""
COOLDOWN_SHARE = 0.4
"""The last part of a stage, over which the learning rate falls linearly to a fiftieth."""


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a stage learns.

    Attributes:
        samples: pictures until the stage is finished.
        batch: pictures per step.
        lr: peak learning rate of AdamW, for embeddings, biases, norms and outputs.
        muon_lr: peak learning rate of Muon, for all other matrices and kernels.
        ema_samples: time constant of the weight average, in samples.
    """

    samples: int
    batch: int
    lr: float
    ema_samples: int = 20_000
    muon_lr: float = 0.02


class Task(Protocol):
    """One stage: what is trained, and on what."""

    name: str
    modules: dict[str, nn.Module]

    def loss(self, first: int, count: int) -> dict[str, Tensor]:
        """Losses on samples `first` to `first + count`; the entry "loss" is minimised."""
        ...

    def evaluate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """Figures on held-out data, computed with the averaged weights."""
        ...


def generator(device: torch.device, *parts: int | str) -> torch.Generator:
    """A generator whose stream depends on `parts` alone."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def lr_factor(seen: int, recipe: Recipe) -> float:
    """Warm-up over the first steps, constant, then a linear cool-down that ends at 1/50."""
    warm = min(1.0, (seen / recipe.batch + 1) / WARMUP_STEPS)
    left = max(0.0, 1.0 - seen / recipe.samples) / COOLDOWN_SHARE
    return warm * max(0.02, min(1.0, left))


def atomic_save(value: object, path: Path) -> None:
    """Write with torch.save so that a reader, or a restart, sees the old file or the new one, never a part."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as stream:
        torch.save(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware. A CPU without it emulates, eight times slower than float32."""
    if device.type != "cpu":
        return True
    try:
        return bool({"amx_bf16", "avx512_bf16"} & set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()))
    except OSError:  # no Linux
        return False


class Trainer:
    """Trains one task and can be killed at any moment.

    Args:
        task: the stage.
        recipe: its length and speed.
        folder: where `checkpoint.pt` and `log.jsonl` go.
        device: of the task's modules.
        autocast: compute in bfloat16 where that is safe; None: where the device does it in hardware.
        peer: the checkpoint of another process that trains the same stage on other samples. At every checkpoint this
            process goes on from the mean of its weights and the peer's, if these are new: gradients of two cores
            without waiting for each other (gossip averaging; Blot et al. 2016, arXiv 1611.09726). What a resumed run
            then gives depends on both.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        folder: Path,
        device: torch.device,
        *,
        autocast: bool | None = None,
        peer: Path | None = None,
    ) -> None:
        self.task, self.recipe, self.folder, self.device = task, recipe, folder, device
        self.autocast = has_bfloat16(device) if autocast is None else autocast
        self.peer, self.peer_seen = peer, 0
        self.seen = 0
        self.seconds = 0.0
        self.average: dict[str, nn.Module] = {}
        for name, module in task.modules.items():
            self.average[name] = copy.deepcopy(module).requires_grad_(False).eval()
        self.optimizer = Muon(_groups(task.modules, recipe))
        folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def checkpoint(self) -> Path:
        """Where the state lives."""
        return self.folder / CHECKPOINT

    def run(self, deadline: float = float("inf"), until: int | None = None) -> bool:
        """Train to the recipe's end, to `until` samples, or to a `time.monotonic()` deadline. True when finished."""
        goal = min(self.recipe.samples, until if until is not None else self.recipe.samples)
        saved = logged = started = time.monotonic()
        window: list[dict[str, Tensor]] = []
        while self.seen < goal and time.monotonic() < deadline:
            window.append(self.step())
            now = time.monotonic()
            if now - logged > LOG_SECONDS:
                self.seconds += now - started
                started = now
                self._log(_means(window))
                window, logged = [], now
            if now - saved > CHECKPOINT_SECONDS:
                self.meet()
                self.save()
                saved = now
        self.seconds += time.monotonic() - started
        if window:
            self._log(_means(window))
        self.save()
        self._log({f"eval/{key}": value for key, value in self.task.evaluate(self.average).items()})
        return self.seen >= self.recipe.samples

    def step(self) -> dict[str, Tensor]:
        """One optimiser step; returns the losses, still on the device."""
        batch = self.recipe.batch
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor(self.seen, self.recipe)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            losses = self.task.loss(self.seen, batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(losses["loss"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.seen += batch
        self._update_average()
        return {**{name: value.detach() for name, value in losses.items()}, "grad_norm": norm.detach()}

    @torch.no_grad()
    def _update_average(self) -> None:
        # The ramp lets the average forget the random start quickly.
        ramp = self.seen / (self.seen + 10.0 * self.recipe.batch)
        keep = min(1.0 - self.recipe.batch / self.recipe.ema_samples, ramp)
        for name, module in self.task.modules.items():
            ours: list[Tensor] = list(self.average[name].parameters())
            theirs: list[Tensor] = list(module.parameters())
            torch._foreach_lerp_(ours, theirs, 1.0 - keep)
            for kept, fresh in zip(self.average[name].buffers(), module.buffers(), strict=True):
                kept.copy_(fresh)

    @torch.no_grad()
    def meet(self) -> bool:
        """Go half the way to the peer's weights; False where there is none, or it saw nothing since the last time."""
        if self.peer is None or not self.peer.exists():
            return False
        state: dict[str, Any] = torch.load(self.peer, map_location=self.device, weights_only=True)
        if state["seen"] <= self.peer_seen:
            return False
        self.peer_seen = state["seen"]
        for kind, modules in (("modules", self.task.modules), ("average", self.average)):
            for name, module in modules.items():
                for key, value in module.state_dict().items():
                    if value.is_floating_point():
                        value.lerp_(state[kind][name][key], 0.5)
        return True

    def save(self) -> None:
        """Write the checkpoint atomically."""
        state = {
            "seen": self.seen,
            "seconds": self.seconds,
            "modules": {name: module.state_dict() for name, module in self.task.modules.items()},
            "average": {name: module.state_dict() for name, module in self.average.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        atomic_save(state, self.checkpoint)

    def _resume(self) -> None:
        if not self.checkpoint.exists():
            return
        state: dict[str, Any] = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        try:
            for name, module in self.task.modules.items():
                if "optimizer" not in state and name not in state["modules"]:
                    continue  # a start from an exported model, which lacks what only training needs
                module.load_state_dict(state["modules"][name])
                self.average[name].load_state_dict(state["average"][name])
            if "optimizer" in state:
                self.optimizer.load_state_dict(state["optimizer"])
        except (KeyError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--out: {self.checkpoint} was written by another architecture ({error}); "
                f"remove it to start this stage again, or choose another folder"
            ) from error
        self.seen, self.seconds = state["seen"], state["seconds"]

    def _log(self, values: Mapping[str, float]) -> None:
        record = {"stage": self.task.name, "seen": self.seen, "seconds": round(self.seconds, 1), **values}
        line = json.dumps({key: round(v, 6) if isinstance(v, float) else v for key, v in record.items()})
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


def averaged_weights(folder: Path, name: str) -> dict[str, Tensor]:
    """The averaged weights of a module out of a stage's checkpoint, on the CPU.

    Raises:
        ConfigError: the stage has not been trained.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        raise ConfigError(f"{path} does not exist: train the stage {folder.name!r} first (--stage {folder.name})")
    state = torch.load(path, map_location="cpu", weights_only=True)
    weights: dict[str, Tensor] = state["average"][name]
    return weights


def _groups(modules: Mapping[str, nn.Module], recipe: Recipe) -> list[dict[str, Any]]:
    """Maps between hidden states go to Muon; biases, norms, embeddings and output heads go to AdamW.

    Nothing of AdamW's share decays: decay would pull the embeddings of rare words to zero.
    """
    matrices: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for module in modules.values():
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            inside = parameter.ndim > 1 and not any(word in name for word in _OUTER)
            (matrices if inside else plain).append(parameter)
    return [
        {"params": matrices, "muon": True, "peak": recipe.muon_lr, "weight_decay": 1e-2},
        {"params": plain, "muon": False, "peak": recipe.lr, "weight_decay": 0.0},
    ]


def _means(window: list[dict[str, Tensor]]) -> dict[str, float]:
    return {key: torch.stack([losses[key].float() for losses in window]).mean().item() for key in window[0]}
