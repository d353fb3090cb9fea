"""Half precision: every layer of every family answers in it, and adapters are trained in fp32 all the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dbexp import models
from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.train.result import Trained
from dbexp.train.train import train
from tests import builders

FULL = {"Timesteps"}
"""Layers that answer in fp32 whatever the precision: diffusers' waves of a time."""
T5_IN_FP16 = {"Linear", "Dropout", "T5DenseGatedActDense", "T5LayerFF"}
"""Where T5 overflows in fp16, so that transformers keeps these weights in full."""
CASES = [
    (family, precision, quantize)
    for family in FAMILIES
    for precision in ("bf16", "fp16")
    for quantize in ((None, "fp8") if precision == "bf16" else (None,))
    if not (family == "z_image" and precision == "fp16")  # in which it overflows; the check refuses it
]


def load(family: str, precision: str, quantize: str | None = None) -> Model:
    settings: dict[str, Any] = {"path": "random", "resolution": 64, "device": "cpu", "quantize": quantize}
    config = ModelConfig(name="random", family=family, precision=precision, **settings)
    return models.load(config, Store(builders.scratch() / "precisions"))


def run(model: Model, folder: Path) -> Trained:
    adapters = {"text_encoder": bool(model.family.text_parts)}
    made = replace(builders.training(steps=2, weight=0.5, adapters=adapters), resolution=64)
    (trained,) = train([made], model, Store(folder))
    assert isinstance(trained, Trained)
    return trained


@cache
def full(family: str) -> list[float]:
    """Losses of the same run in fp32."""
    return [row["loss"] for row in run(load(family, "fp32"), builders.scratch() / f"full-{family}").history]


@pytest.mark.parametrize(("family", "precision", "quantize"), CASES)
def test_nothing_is_computed_in_another(family: str, precision: str, quantize: str | None, tmp_path: Path) -> None:
    expected = full(family)
    model = load(family, precision, quantize)
    others: set[tuple[str, torch.dtype]] = set()

    def note(module: nn.Module, _: Any, out: Any) -> None:
        if isinstance(out, Tensor) and out.is_floating_point() and out.dtype != model.dtype:
            others.add((type(module).__name__, out.dtype))

    for part in (model.family.denoiser, *model.family.encoders):
        for module in model.part(part).modules():
            module.register_forward_hook(note)
    trained = run(model, tmp_path)
    reads_t5 = any("T5" in name for name in type(model).classes.values())  # type: ignore[attr-defined]  # a checkpoint's
    assert {name for name, _ in others} <= FULL | (T5_IN_FP16 if reads_t5 and precision == "fp16" else set())
    assert [row["loss"] for row in trained.history] == pytest.approx(expected, rel=0.05)
    assert all(value.dtype == torch.float32 for value in builders.tensors(trained.lora).values())
