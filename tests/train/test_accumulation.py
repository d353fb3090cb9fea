"""Which passes make an optimizer step: those of accelerate's `accumulate`, or on through all epochs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import BatchSamplerShard
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from dbexp.config.schema import Config, TrainConfig
from dbexp.core.store import Store
from dbexp.train import accumulation
from dbexp.train.lane import schedule_of_pictures
from dbexp.train.result import inputs_of
from tests import builders
from tests.builders import pictures, training
from tests.models.families import assert_identical, assert_resumes, run

EPOCHS = 3


def steps_of_accelerate(items: int, batch_size: int, grad_accum: int, *, accumulates: bool = True) -> list[bool]:
    """Whether each pass of some epochs ends in an optimizer step, in a loop as that of diffusers' scripts, or as that
    of cloneofsimo's, which does not accumulate."""
    accelerator = Accelerator(gradient_accumulation_steps=grad_accum, cpu=True)
    weights = nn.Linear(1, 1)
    batches = DataLoader(TensorDataset(torch.ones(items, 1)), batch_size=batch_size, shuffle=True)
    weights, optimizer, batches = accelerator.prepare(weights, torch.optim.SGD(weights.parameters(), lr=1.0), batches)
    stepped = []
    for _ in range(EPOCHS):
        for (batch,) in batches:
            before = [parameter.detach().clone() for parameter in weights.parameters()]
            with accelerator.accumulate(weights) if accumulates else nullcontext():
                accelerator.backward(weights(batch).mean())
                optimizer.step()
                optimizer.zero_grad()
            stepped.append(not all(map(torch.equal, before, weights.parameters())))
    return stepped


@pytest.mark.parametrize(
    ("items", "batch_size", "grad_accum"),
    [(5, 1, 2), (5, 1, 4), (6, 1, 2), (3, 1, 4), (1, 1, 4), (5, 2, 2), (7, 3, 2), (5, 1, 1), (200, 1, 3)],
)
def test_a_remainder_that_steps_is_accelerates(items: int, batch_size: int, grad_accum: int) -> None:
    expected = steps_of_accelerate(items, batch_size, grad_accum)
    cfg = TrainConfig(batch_size=batch_size, grad_accum=grad_accum, remainder="step")
    for instances, priors in [(items, 0), (1, items), (items, 1)]:
        steps = accumulation.of(cfg, instances, priors)
        assert [steps.between(passes) for passes in range(1, len(expected) + 1)] == expected


@pytest.mark.parametrize("remainder", ["carry", "step"])
@pytest.mark.parametrize(("items", "grad_accum"), [(5, 2), (5, 4), (6, 2), (3, 4), (4, 1)])
def test_it_counts_what_it_steps(items: int, grad_accum: int, remainder: str) -> None:
    steps = accumulation.of(TrainConfig(grad_accum=grad_accum, remainder=remainder), items, 0)
    done, since = 0, 0
    for passes in range(1, 40):
        since += 1
        if steps.between(passes):
            done += 1
            assert steps.of_step(done) == since
            assert steps.passes(done) == passes
            assert remainder == "step" or since == grad_accum
            since = 0
        assert steps.steps(passes) == done


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("items", [1, 2, 5, 6])
def test_processes_share_an_epoch_as_accelerate_deals_it(items: int, processes: int) -> None:
    steps = accumulation.of(TrainConfig(grad_accum=2, remainder="step"), items, 0, processes)
    batches = BatchSampler(SequentialSampler(range(items)), batch_size=1, drop_last=False)
    for process in range(processes):
        expected = [batch[0] for batch in BatchSamplerShard(batches, processes, process)]
        assert len(expected) == steps.cycle
        for epoch in range(EPOCHS):
            taken = [steps.microbatch(epoch * steps.cycle + turn, process, processes) for turn in range(steps.cycle)]
            assert taken == [epoch * items + item for item in expected]


def test_every_epoch_sees_each_picture_once() -> None:
    steps = accumulation.of(TrainConfig(grad_accum=2, remainder="step"), 5, 0)
    seen = [schedule_of_pictures(steps.microbatch(passes, 0, 1), 5, 0, 1, seed=0)[0][0] for passes in range(10)]
    assert sorted(seen[:5]) == sorted(seen[5:]) == list(range(5))


class TestTraining:
    def test_alone_in_a_pack_and_interrupted(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"weight": 0.0, "images": pictures(5), "grad_accum": 2, "steps": 5, "log_every": 1}
        stepping, carrying = (training(remainder=name, **settings) for name in ("step", "carry"))
        (alone,) = run([stepping], builders.model(), Store(tmp_path / "alone"))
        assert [row["step"] for row in alone.history] == [1, 2, 3, 4, 5]
        assert_resumes(stepping, builders.model(), alone, Store(tmp_path / "stopped"))
        together, other = run([stepping, carrying], builders.model(), Store(tmp_path / "pack"))
        losses = [[row["loss"] for row in trained.history] for trained in (alone, together, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        # the third step is one pass here and two there
        assert losses[2][:2] == pytest.approx(losses[0][:2], rel=1e-5)
        assert losses[2][2] != pytest.approx(losses[0][2], rel=1e-3)

    def test_where_nothing_remains_nothing_changes(self, tmp_path: Path) -> None:
        """Neither the training nor its key: recipes that say how they step find what was trained before they did."""
        model = builders.model()
        for settings in ({"images": pictures(4), "grad_accum": 2}, {"images": pictures(5)}):
            made = training(weight=0.0, steps=2, **settings)
            stepping = replace(made, cfg=replace(made.cfg, remainder="step"))
            assert inputs_of(stepping, model) == inputs_of(made, model)
            assert_identical(*run([made], model, Store(tmp_path)), *run([stepping], model, Store(tmp_path / "other")))

    @pytest.mark.parametrize(("weight", "moves"), [(0.0, True), (1.0, False)])
    def test_it_is_known_by_its_key_where_something_does(self, weight: float, moves: bool) -> None:
        made = training(weight=weight, images=pictures(5), class_images=pictures(6, seed=1), grad_accum=2)
        stepping = replace(made, cfg=replace(made.cfg, remainder="step"))
        assert (inputs_of(stepping, builders.model()) != inputs_of(made, builders.model())) is moves


class TestRecipes:
    """The stepping of each recipe is that of its script, on five pictures, which fill no two passes."""

    @pytest.mark.parametrize("grad_accum", [1, 2])
    def test_diffusers(self, checked: Callable[..., Config], grad_accum: int) -> None:
        words = ("experiment=recipe/diffusers", "model=sd15", "dataset=dog3", f"train.grad_accum={grad_accum}")
        cfg = checked(*words).train
        self.assert_steps(cfg, steps_of_accelerate(5, 1, grad_accum))

    @pytest.mark.parametrize("name", ["sdxl", "flux2_klein_4b", "z_image"])
    def test_families(self, checked: Callable[..., Config], name: str) -> None:
        cfg = checked(f"model={name}", "dataset=dog3", "prior.weight=0").train
        assert cfg.grad_accum == 4
        self.assert_steps(cfg, steps_of_accelerate(5, 1, 4))

    def test_cloneofsimo(self, checked: Callable[..., Config]) -> None:
        """It never enters `accumulate`: an optimizer step at every pass."""
        cfg = checked("experiment=recipe/cloneofsimo", "model=sd15", "dataset=dog3").train
        self.assert_steps(cfg, steps_of_accelerate(5, 1, 1, accumulates=False))

    def assert_steps(self, cfg: TrainConfig, expected: list[bool]) -> None:
        steps = accumulation.of(cfg, 5, 0)
        assert [steps.between(passes) for passes in range(1, len(expected) + 1)] == expected
