"""What a model family is held to, whichever it is: an independent trainer, lanes that equal solo runs, stock pictures.

A family's test gives the folder of its random weights and says how its own classes compute the error of a row.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from diffusers.optimization import get_scheduler
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from PIL import Image
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.core.errors import Interrupted
from dbexp.core.store import Store
from dbexp.export import command
from dbexp.models import Model, lora_file
from dbexp.models.checkpoint import Checkpoint
from dbexp.train import step
from dbexp.train.data import Training
from dbexp.train.lane import Draw, Lane, Row
from dbexp.train.result import Trained
from dbexp.train.train import train
from tests import builders, sweeps

STEPS = 5
LONG = (
    "a photo of sks dog on top of a purple rug in the snow with a blue house in the background and a red dog and a cat "
    "on the beach"
)
"""Longer than 32 tokens: some denoisers pad to multiples of that."""


def training(resolution: int, **settings: Any) -> Training:
    """A training of few steps on noise, see `builders.training`; prompts may be given, too."""
    prompts = {name: settings.pop(name) for name in ("prompt", "class_prompt") if name in settings}
    return replace(builders.training(**{"steps": STEPS, **settings}), resolution=resolution, **prompts)


def run(trainings: Sequence[Training], model: Model, store: Store, **kwargs: Any) -> list[Trained]:
    """Train; every run must succeed."""
    results = train(trainings, model, store, **kwargs)
    for result in results:
        assert isinstance(result, Trained), result
    return [result for result in results if isinstance(result, Trained)]


def pixels(paths: Sequence[Path], resolution: int) -> Tensor:
    """Square pictures, fp32 [B, 3, resolution, resolution] in [-1, 1]."""
    images = [Image.open(path).resize((resolution, resolution), Image.Resampling.BILINEAR) for path in paths]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1


def assert_identical(one: Trained, other: Trained) -> None:
    """Bit for bit the same LoRA and the same history."""
    a, b = builders.tensors(one.lora), builders.tensors(other.lora)
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert one.history == other.history


def assert_close(one: Trained, other: Trained) -> None:
    """Losses within 1e-5, relative, and weights within 1e-5; a step moves a weight by about the lr, 1e-3."""
    losses = [[row["loss"] for row in trained.history] for trained in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    a, b = builders.tensors(one.lora), builders.tensors(other.lora)
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-5)


def assert_resumes(made: Training, model: Model, whole: Trained, store: Store) -> None:
    """Stopped at its third step and started again, a training ends as if it had never been stopped."""

    def stop(number: int, rows: Sequence[Row]) -> None:
        if rows[-1]["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="training stopped at step 3"):
        train([made], model, store, stop)
    (resumed,) = run([made], model, store)
    assert_identical(resumed, whole)


# -- lanes -------------------------------------------------------------------------------------------------------------


class LaneTests:
    """Lanes that differ in whatever they may; for a test class that has `model`, its family's model in fp32."""

    resolution: ClassVar[int]
    adapters: ClassVar[int]
    """Number of layers that `attention` adapts."""

    @classmethod
    def lanes(cls) -> dict[str, Training]:
        """By what is special about each."""
        return {
            "plain": training(cls.resolution),
            "other rank and rate, no prior, a long prompt": training(
                cls.resolution, weight=0.0, adapters={"rank": 8, "alpha": 2.0}, lr=5e-4, prompt=LONG
            ),
            "short, polynomial, other seed, subject and batch": training(
                cls.resolution,
                images=builders.pictures(3, seed=5),
                seed=3,
                weight=0.5,
                steps=3,
                batch_size=2,
                schedule={"name": "polynomial", "warmup_steps": 1},
                class_prompt="a dog",
            ),
        }

    @pytest.fixture(scope="class")
    @classmethod
    def solo(cls, model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
        """Each lane, trained alone."""
        make = tmp_path_factory.mktemp
        return [run([lane], model, Store(make("solo")))[0] for lane in cls.lanes().values()]

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_equal_solo_runs(self, model: Model, solo: list[Trained], tmp_path: Path, checkpointing: bool) -> None:
        lanes = list(self.lanes().values())
        for lane in lanes:
            lane.cfg.gradient_checkpointing = checkpointing
        for packed, alone in zip(run(lanes, model, Store(tmp_path)), solo, strict=True):
            assert_close(packed, alone)

    def test_resumed(self, model: Model, solo: list[Trained], tmp_path: Path) -> None:
        assert_resumes(training(self.resolution, log_every=1), model, solo[0], Store(tmp_path))

    def test_every_lane_moves_every_adapter(self, solo: list[Trained]) -> None:
        assert len({trained.history[0]["loss"] for trained in solo}) == len(solo)
        for trained in solo:
            ups = [value for key, value in builders.tensors(trained.lora).items() if ".lora_B." in key]
            assert len(ups) == self.adapters and min(up.abs().max() for up in ups) > 1e-4


# -- an independent trainer -------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """What the package's trainer drew, and what gradients it got, step by step."""

    draws: list[Draw] = field(default_factory=list)
    starts: list[dict[str, Tensor]] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)


@contextmanager
def watching() -> Any:
    """Inside the block the trainer tells a `Watched` what it does."""
    seen = Watched()
    start, draw, of_lanes = Lane.__init__, Lane.draw, step.of_lanes

    def watched_start(lane: Lane, *args: Any) -> None:
        start(lane, *args)
        seen.starts.append(lane.adapter.state())

    def watched_draw(lane: Lane) -> Draw:
        seen.draws.append(draw(lane))
        return seen.draws[-1]

    def watched_step(lanes: Sequence[Lane], *rates: Tensor) -> Tensor:
        for lane in lanes:
            views = {f"{name}.down": p for name, p in lane.adapter.down.items()}
            views |= {f"{name}.up": p for name, p in lane.adapter.up.items()}
            seen.gradients.append({name: p.grad.clone() for name, p in views.items() if p.grad is not None})
        return of_lanes(lanes, *rates)

    with (
        patch.object(Lane, "__init__", watched_start),
        patch.object(Lane, "draw", watched_draw),
        patch.object(step, "of_lanes", watched_step),
    ):
        yield seen


class Independent(ABC):
    """A DreamBooth-LoRA trainer of its own: the libraries' models, PEFT's layers, torch's optimizer.

    It shares nothing with the package but the random numbers and the initial A that it is told.

    Args:
        training: as the package's trainer has it.
        parts: name -> network that is adapted.
        targets: name -> PEFT's `target_modules`.
    """

    def __init__(self, training: Training, parts: Mapping[str, nn.Module], targets: Mapping[str, Any]) -> None:
        self.training, self.parts = training, parts
        cfg, lora = training.cfg, training.lora
        alpha = lora.alpha or lora.rank
        common: dict[str, Any] = {"r": lora.rank, "lora_alpha": alpha, "init_lora_weights": "gaussian"}
        groups: list[dict[str, Any]] = []
        for name, module in parts.items():
            module.requires_grad_(False)
            inject_adapter_in_model(PeftConfig(target_modules=targets[name], **common), module)
            rate = cfg.lr if not groups else cfg.text_encoder_lr or cfg.lr
            groups.append({"params": [p for p in module.parameters() if p.requires_grad], "lr": rate})
        self.trained = [parameter for group in groups for parameter in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=cfg.weight_decay)
        self.scheduler = get_scheduler(
            training.lr_schedule.name,
            self.optimizer,
            num_warmup_steps=training.lr_schedule.warmup_steps,
            num_training_steps=cfg.steps,
        )

    @abstractmethod
    def errors(self, draw: Draw, paths: Sequence[Path], prompts: Sequence[str]) -> Tensor:
        """The squared error of every row [n] of a microbatch, of its picture and with its caption."""

    def step(self, draw: Draw) -> tuple[float, dict[str, Tensor]]:
        """One optimizer step; its loss, and the gradients before clipping."""
        made, count = self.training, len(draw.instance)
        paths = [made.images[row] for row in draw.instance] + [made.class_images[row] for row in draw.prior]
        prompts = [made.prompt] * count + [made.class_prompt] * len(draw.prior)
        errors = self.errors(draw, paths, prompts)
        loss = errors[:count].mean()
        if draw.prior:
            loss = loss + made.prior_weight * errors[count:].mean()
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in self._adapters() if p.grad is not None}
        gradients = {name: grad.T if name.endswith(".up") else grad for name, grad in gradients.items()}
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return loss.item(), gradients

    def _adapters(self) -> list[tuple[str, nn.Parameter]]:
        names = []
        for part, module in self.parts.items():
            for name, parameter in module.named_parameters():
                for mark, kind in ((".lora_A.", "down"), (".lora_B.", "up")):
                    if mark in name:
                        names.append((f"{part}.{name.partition(mark)[0]}.{kind}", parameter))
        return names

    @property
    def adapters(self) -> dict[str, Tensor]:
        """'part.site.down' or '.up' -> parameter, in the shapes of the package's adapters."""
        return {name: parameter.T if name.endswith(".up") else parameter for name, parameter in self._adapters()}


def assert_same_steps(other: Independent, model: Model, store: Store) -> None:
    """Losses, gradients and LoRA of the package's trainer are those of the independent one, step by step."""
    with watching() as seen:
        (trained,) = run([other.training], model, store)
    assert other.adapters.keys() == seen.starts[0].keys()
    with torch.no_grad():
        for name, parameter in other.adapters.items():
            parameter.copy_(seen.starts[0][name])
    for draw, gradients, row in zip(seen.draws, seen.gradients, trained.history, strict=True):
        loss, expected = other.step(draw)
        norm = torch.stack([value.norm() for value in expected.values()]).norm().item()
        assert row["loss"] == pytest.approx(loss, rel=1e-5)
        assert row["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert gradients.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-5 * norm)
    weights = lora_file.read(trained.lora, model).weights
    final = {f"{name}.down": down for name, (down, _) in weights.items()}
    final |= {f"{name}.up": up.T for name, (_, up) in weights.items()}
    for name, parameter in other.adapters.items():
        # Adam turns rounding into steps where a gradient is nothing else: a single weight may be off by more
        apart = (final[name] - parameter.detach()).abs()
        assert apart.mean() < 1e-6 and apart.max() < 1e-4, name
    assert max((final[name] - seen.starts[0][name]).abs().max().item() for name in final) > 1e-3


# -- memory ----------------------------------------------------------------------------------------------------------


def assert_text_first(model: Model, made: Training, store: Store) -> None:
    """Encoders and denoiser of a model, which has loaded neither, are never in memory together while a run trains."""
    beside: list[set[str]] = []
    read = Checkpoint._load

    def watched(checkpoint: Checkpoint, name: str) -> Any:
        if name == model.family.denoiser:
            beside.append(set(checkpoint.parts))
        return read(checkpoint, name)

    with patch.object(Checkpoint, "_load", watched):
        run([made], model, store)
    assert beside == [set()]


# -- the whole experiment ---------------------------------------------------------------------------------------------


def assert_whole_experiment(family: str, folder: Path, formats: Sequence[str] | None = None) -> None:
    """A sweep on `model=random` trains on pictures, samples, measures and compares; the files that `dbexp-export` makes
    of a run draw the same in stock diffusers, as it checks itself.

    Args:
        formats: of these files; None: all of the family.
    """
    words = [
        "model=random",
        f"model.family={family}",
        "dataset=folder",
        f"dataset.path={builders.pictures()[0].parent}",
        "dataset.class_noun=dog",
        "dataset.live=true",
        "lora.rank=2,4",
        "train.steps=3",
        "prior.count=2",
        "prior.steps=2",
        'sample.prompts=["a {token} {class} in the snow","a red {token} {class}"]',
        "sample.images_per_prompt=2",
        "sample.class_images=2",
        "sample.steps=2",
        "tracking.mode=disabled",
        "hydra.sweep.dir=sweep",
        f"store={folder / 'store'}",
    ]
    outcome = sweeps.dbexp_command(folder, "-m", *words)
    assert outcome.status == 0, outcome.err
    rows = sweeps.results(folder / "sweep")
    assert {row["lora.rank"] for row in rows} == {"2", "4"}
    assert all(float(row["dino"]) and float(row["clip_t"]) for row in rows)
    command.main([f"run={folder / 'sweep' / '1'}", f"folder={folder / 'exported'}", "check_steps=2"])
    assert len(list((folder / "exported").glob("*.safetensors"))) == len(formats or FAMILIES[family].formats)
