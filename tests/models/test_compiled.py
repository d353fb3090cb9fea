"""What of a denoiser is compiled, and what a machine lacks for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dbexp import models
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import compiled
from dbexp.pipeline import prepare as preparing
from dbexp.train.data import prepare
from dbexp.train.lane import open_slots
from tests import builders
from tests.models import families


@pytest.mark.parametrize("family", ["sd", "flux2_klein", "z_image"])
def test_blocks_are_those_that_diffusers_names(family: str, tmp_path: Path) -> None:
    model = models.load(builders.model_config(path="random", resolution=64, family=family), Store(tmp_path))
    denoiser: Any = model.part(model.family.denoiser)
    named = [module for module in denoiser.modules() if type(module).__name__ in denoiser._repeated_blocks]
    assert {*compiled.blocks(denoiser)} == {*named}
    with open_slots(prepare([families.training(64)], model, Store(tmp_path)), model):
        assert {*compiled.blocks(denoiser)} == {*named}, "with adapters in them, too"
    models.forget()


class TestMachines:
    """What a machine lacks is told before anything is computed."""

    @pytest.mark.parametrize("group", ["train", "sample"])
    def test_without_a_compiler(
        self, group: str, monkeypatch: pytest.MonkeyPatch, checked: Callable[..., Config]
    ) -> None:
        config = checked(f"{group}.compile=blocks", "model.device=cpu", "dataset.path=nowhere")
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(ConfigError) as caught:
            preparing.check_inputs(config)
        (message,) = [line for line in caught.value.problems if line.startswith(("train.", "sample."))]
        assert message == (
            f"{group}.compile=blocks: there is no C++ compiler (g++ or clang++, or the variable CXX); give none, which "
            "needs nothing"
        )

    @pytest.mark.parametrize(
        ("device", "has", "lacks"),
        [
            ("cpu", {"/opt/bin/c++"}, None),
            ("cuda", {"gcc"}, "the package triton is not installed"),
            ("cuda", {"triton"}, "there is no C compiler"),
            ("cuda", {"triton", "clang"}, None),
            ("mps", {"g++", "triton"}, "it is for cpu and cuda, and model.device is mps"),
        ],
    )
    def test_each_kind(self, device: str, has: set[str], lacks: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "/opt/bin/c++ -O2")
        monkeypatch.setattr(shutil, "which", lambda name: name if name in has else None)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in has else None)
        told = compiled.problems("train.compile", "model", device)
        assert (lacks is None and told == []) or (lacks is not None and lacks in told[0])
