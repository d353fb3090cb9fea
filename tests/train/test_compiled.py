"""The denoiser compiled while it trains: the same losses, under lanes, checkpointing and quantised weights, and nothing
of it left afterwards. By default the compiler's own code generator is left out, which takes minutes here."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dbexp import models
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.models.compiled import compiled
from dbexp.train import memory
from dbexp.train.data import Training, prepare
from dbexp.train.lane import Row, enter, open_slots
from dbexp.train.loop import Loop
from dbexp.train.train import train
from tests import builders


def lanes(*steps: int, **settings: Any) -> list[Training]:
    """Two that differ in rank and prior."""
    return [
        builders.training(steps=steps[0], **settings),
        builders.training(steps=steps[1], seed=2, weight=0.0, adapters={"rank": 8}, **settings),
    ]


def trained(
    trainings: Sequence[Training], model: Model, folder: Path, mode: str, backend: str = "aot_eager"
) -> tuple[list[list[Row]], list[dict[str, Tensor]]]:
    """Histories and weights."""
    data = prepare(trainings, model, Store(folder))
    try:
        with open_slots(data, model) as slots, compiled(model, "train.compile", mode, backend):
            made = [enter(slots, slot, entry, model) for slot, entry in enumerate(data)]
            with closing(Loop(made, slots, model, memory._Silent(), lambda *_: None, steady=True)) as loop:
                while any(lane.running for lane in made):
                    loop.microbatch()
                loop.flush()
            return [lane.history for lane in made], [lane.adapter.state() for lane in made]
    finally:
        model.enable_gradient_checkpointing(False)


def assert_equal(one: Any, other: Any, tolerance: float) -> None:
    """Losses, relative, and weights; 0: to the bit."""
    for ours, theirs in zip(one[0], other[0], strict=True):
        for row, expected in zip(ours, theirs, strict=True):
            assert row == pytest.approx(expected, rel=tolerance, abs=0)
    for state, expected in zip(one[1], other[1], strict=True):
        for name, weight in expected.items():
            torch.testing.assert_close(state[name], weight, rtol=0, atol=tolerance)


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    """Nothing that was compiled for another test."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("mode", "steps", "checkpointing"),
    [
        ("blocks", (2, 2), True),
        pytest.param("blocks", (3, 1), False, marks=pytest.mark.slow),
        pytest.param("model", (2, 2), False, marks=pytest.mark.slow),
        pytest.param("model", (2, 2), True, marks=pytest.mark.slow),
    ],
)
def test_losses_are_those_of_the_uncompiled(
    mode: str, steps: tuple[int, int], checkpointing: bool, tmp_path: Path
) -> None:
    """To the bit; every block is compiled, sites are no gaps in it, and nothing of it stays."""
    model, made = builders.model(), lanes(*steps, gradient_checkpointing=checkpointing)
    expected = trained(made, model, tmp_path, "none")
    torch._dynamo.utils.counters.clear()
    assert_equal(trained(made, model, tmp_path, mode), expected, 0.0)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 1 and not counters["graph_break"]
    assert not any("forward" in vars(module) for module in model.part("unet").modules())


@pytest.mark.slow
def test_a_quantised_transformer(tmp_path: Path) -> None:
    """Of another family, whose weights have 8 bits; loaded anew between two packs."""
    store = Store(tmp_path)
    config = builders.model_config(path="random", resolution=64, family="flux2_klein", quantize="fp8")
    model = models.load(config, store)
    trainings = [replace(training, resolution=64) for training in lanes(2, 2)]
    expected = trained(trainings, model, tmp_path, "none")
    for _ in range(2):
        assert_equal(trained(trainings, model, tmp_path, "blocks"), expected, 0.0)
        model.release(model.family.denoiser)
    models.forget()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.parametrize("family", ["sd", "flux2_klein"])
def test_by_the_compilers_own_code(family: str, tmp_path: Path) -> None:
    model = models.load(builders.model_config(path="random", resolution=64, family=family), Store(tmp_path))
    trainings = [replace(training, resolution=64) for training in lanes(2, 2)]
    expected = trained(trainings, model, tmp_path, "none")
    assert_equal(trained(trainings, model, tmp_path, "blocks", "inductor"), expected, 1e-5)
    models.forget()


def test_the_train_stage_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for the field's value, and what a compiler cannot do is one message."""
    asked = []

    def broken(forward: Callable[..., object], **settings: Any) -> Callable[..., object]:
        asked.append(settings)

        def call(*args: object, **kwargs: object) -> object:
            raise torch._dynamo.exc.TorchDynamoException("no such target\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ConfigError, match=r"^train.compile=model: torch cannot .* here \(no such target\); give none$"):
        train([builders.training(compile="model")], builders.model(), Store(tmp_path))
    assert [settings["dynamic"] for settings in asked] == [False]
    assert "forward" not in vars(builders.model().part("unet"))
