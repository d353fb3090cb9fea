"""Quantised denoisers: what is stored, what is computed, lanes on them, LoRAs beside them, keys and refusals."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dbexp.config.schema import Config, ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.progress import progress
from dbexp.core.store import Store
from dbexp.models import Model, flux2_klein, random_flux2_klein, sd
from dbexp.models.beside import adapted, beside
from dbexp.models.lora_file import merged
from dbexp.models.quantize import STORAGE, Float8Linear, require
from dbexp.models.random_weights import TINY
from dbexp.sample.draw import Drawing, Engine
from dbexp.sample.shots import Shot
from dbexp.train import memory, packing
from dbexp.train.adapter import save
from tests import builders
from tests.models import families

FAMILIES = ("sd", "flux2_klein")
RESOLUTION = {"sd": TINY.resolution, "flux2_klein": 64}


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """(family, settings of ModelConfig) -> its tiny model; the same object for the same settings."""
    hashes, klein = tmp_path_factory.mktemp("hashes"), tmp_path_factory.mktemp("klein")
    random_flux2_klein.build_random(klein)
    loaded: dict[str, Model] = {}

    def of(family: str, quantize: str | None = "fp8", **settings: Any) -> Model:
        folder = builders.checkpoint() if family == "sd" else klein
        cfg = ModelConfig(name="tiny", family=family, path=str(folder), quantize=quantize)
        cfg = replace(cfg, **{"precision": "fp32", "device": "cpu", **settings})
        if str(cfg) not in loaded:
            loaded[str(cfg)] = {"sd": sd, "flux2_klein": flux2_klein}[family].load(cfg, Store(hashes))
        return loaded[str(cfg)]

    return of


def denoiser(model: Model) -> nn.Module:
    return model.part(model.family.denoiser)


def lora(model: Model, folder: Path, strength: float) -> Path:
    part, path = model.family.denoiser, folder / "lora.safetensors"
    save(path, builders.adapter(model, {part: 3}, {part: 6.0}, strength=strength), model, {})
    return path


def picture(model: Model) -> Any:
    return builders.picture(model, side=32 if model.family.denoiser == "unet" else 64)


@pytest.mark.parametrize("family", FAMILIES)
class TestBothFamilies:
    def test_adapted_layers_are_stored_in_8_bits(self, load: Callable[..., Model], family: str) -> None:
        model, full = load(family), load(family, None)
        part = model.family.denoiser
        for site in model.sites(part, "attention"):
            layer = model.part(part).get_submodule(site)
            assert isinstance(layer, Float8Linear) and layer.weight.dtype == STORAGE
        assert model.sites(part, "attention") == full.sites(part, "attention")
        assert next(model.part(part).parameters()).dtype == torch.float32  # as pipelines ask for it
        others = [load(family).part(name) for name in ("vae", "text_encoder")]
        assert not any(isinstance(layer, Float8Linear) for module in others for layer in module.modules())

    def test_lanes_equal_solo_runs(self, load: Callable[..., Model], family: str, tmp_path: Path) -> None:
        model, resolution = load(family), RESOLUTION[family]
        lanes = [
            families.training(resolution),
            families.training(resolution, weight=0.0, adapters={"rank": 8, "alpha": 2.0}, lr=5e-4, seed=3),
        ]
        solo = [families.run([lane], model, Store(tmp_path / str(i)))[0] for i, lane in enumerate(lanes)]
        for checkpointing in (False, True):
            for lane in lanes:
                lane.cfg.gradient_checkpointing = checkpointing
            packed = families.run(lanes, model, Store(tmp_path / f"together {checkpointing}"))
            for one, alone in zip(packed, solo, strict=True):
                families.assert_close(one, alone)
        full = families.run(lanes[:1], load(family, None), Store(tmp_path / "full"))[0]
        assert full.history[-1]["loss"] != solo[0].history[-1]["loss"]
        assert full.history[-1]["loss"] == pytest.approx(solo[0].history[-1]["loss"], rel=0.1)

    @pytest.mark.parametrize("scale", [1.0, 0.5])
    def test_beside_draws_what_merging_does(
        self, load: Callable[..., Model], family: str, scale: float, tmp_path: Path
    ) -> None:
        model = load(family, None)
        file, base = lora(model, tmp_path, 0.5), picture(model)
        with merged(model, file, scale, [model.family.denoiser]):
            expected = picture(model)
        with beside(model, file, scale):
            found = picture(model)
        assert abs(found - expected).max() <= 1 < abs(found - base).max()
        assert (picture(model) == base).all()

    def test_a_small_lora_is_not_rounded_away(self, load: Callable[..., Model], family: str, tmp_path: Path) -> None:
        """Of the update, 8 bits would keep nothing; beside the weights it does what it does to the whole base."""
        model, full = load(family), load(family, None)
        file = lora(model, tmp_path, 0.01)
        rows = {"noisy": torch.randn(1, *_latent(family)), "times": torch.tensor([500 if family == "sd" else 0.5])}
        states = model.encode(model.tokenize([builders.PROMPT]))

        def change(base: Model) -> torch.Tensor:
            with torch.no_grad():
                before = base.predict(rows["noisy"], rows["times"], states)
                with adapted(base, file):
                    return base.predict(rows["noisy"], rows["times"], states) - before

        ours, expected = change(model), change(full)
        assert expected.abs().max() > 0
        assert (ours - expected).norm() < 0.3 * expected.norm()

    def test_merging_is_refused(self, load: Callable[..., Model], family: str, tmp_path: Path) -> None:
        model = load(family)
        file = lora(model, tmp_path, 0.5)
        with pytest.raises(ConfigError, match=r"model.quantize=fp8: .* cannot be merged"), merged(model, file):
            pytest.fail("the block must not run")
        with merged(model, file, parts=model.family.encoders), merged(model, None):
            pass  # which are in full precision

    def test_identity(self, load: Callable[..., Model], family: str) -> None:
        assert load(family).identity != load(family, None).identity


def _latent(family: str) -> tuple[int, int, int]:
    return (4, 16, 16) if family == "sd" else (128, 4, 4)


def test_the_numbers_are_those_of_layerwise_casting(load: Callable[..., Model]) -> None:
    ours, theirs = denoiser(load("flux2_klein", precision="bf16")), load("flux2_klein", None, precision="bf16")
    model: Any = denoiser(theirs)
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    stored = {name: layer.weight for name, layer in ours.named_modules() if isinstance(layer, Float8Linear)}
    expected = {
        name: layer.weight
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float8_e4m3fn
    }
    assert stored.keys() == expected.keys()
    assert all(torch.equal(weight.float(), expected[name].float()) for name, weight in stored.items())
    states = theirs.encode(theirs.tokenize([builders.PROMPT]))
    noisy, times = torch.randn(1, 128, 4, 4), torch.tensor([0.5])
    with torch.no_grad():
        outputs = [load("flux2_klein", q, precision="bf16").predict(noisy, times, states) for q in ("fp8", None)]
    assert torch.equal(*outputs)
    theirs.release(theirs.family.denoiser)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_rounded_weight(dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 5).to(dtype).requires_grad_(False)
    rounded = nn.Linear(6, 5).to(dtype).requires_grad_(False)
    rounded.load_state_dict({"weight": layer.weight.to(STORAGE).to(dtype), "bias": layer.bias})
    x = torch.randn(3, 2, 6, dtype=dtype)
    results = []
    for each in (Float8Linear(layer), rounded):
        leaf = x.clone().requires_grad_()
        y = each(leaf)
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    for ours, expected in zip(*results, strict=True):
        assert torch.equal(ours, expected)


def test_a_drawn_picture_shows_the_lora_and_threads_do_not_disturb_it(
    load: Callable[..., Model], tmp_path: Path
) -> None:
    model = load("sd")
    file = lora(model, tmp_path, 1.0)

    def draw(name: str, **settings: Any) -> bytes:
        drawing = Drawing(2, 3.0, None, "", 32, 32, batch_size=2, **settings)
        engine = Engine(model, drawing)
        engine._threads = 2
        shots = [Shot(builders.PROMPT, seed, f"{seed}.png") for seed in range(4)]
        folder = tmp_path / name
        folder.mkdir()
        with progress(name, len(shots)) as bar:
            engine.draw(engine.missing(shots, folder, {}), folder, {}, bar, "sample.batch_size")
        return b"".join((folder / shot.path).read_bytes() for shot in shots)

    base, full, half = draw("base"), draw("full", lora=file), draw("half", lora=file, lora_scale=0.5)
    assert len({base, full, half}) == 3
    assert draw("again", lora=file) == full and draw("base again") == base


def test_frozen_weights_do_not_count_as_a_lanes_memory(load: Callable[..., Model], tmp_path: Path) -> None:
    made, store = families.training(RESOLUTION["sd"]), Store(tmp_path)
    costs = [memory._backward_bytes(made, load("sd", quantize), store) for quantize in (None, "fp8")]
    assert costs[1] <= costs[0]


class TestSettings:
    def test_runs_on_other_weights_do_not_train_together(self) -> None:
        config = builders.config()
        other = replace(config, model=replace(config.model, quantize="fp8"))
        assert packing.packs([config, other]) == [[0], [1]]

    def test_an_unknown_one_is_refused(self, checked: Callable[..., Config]) -> None:
        assert checked("model.quantize=fp8").model.quantize == "fp8"
        with pytest.raises(ConfigError, match=r"model.quantize=int3: choose one of fp8, nf4, or null"):
            checked("model.quantize=int3")

    def test_nf4_is_refused_before_anything_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        cfg = builders.model_config(quantize="nf4")
        with pytest.raises(ConfigError) as caught:
            sd.load(replace(cfg, path="nowhere"), Store(tmp_path))
        assert str(caught.value) == (
            "model.quantize=nf4: needs the package bitsandbytes, which is not installed, and a GPU (model.device is "
            "cpu); fp8 needs neither"
        )
        with pytest.raises(ConfigError, match="not installed; fp8"):
            require("nf4", torch.device("cuda"))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        with pytest.raises(ConfigError, match=r"needs a GPU \(model.device is cpu\)"):
            require("nf4", torch.device("cpu"))
        require("nf4", torch.device("cuda"))

    def test_8_bits_are_refused_where_there_are_none(self) -> None:
        with pytest.raises(ConfigError, match=r"model.quantize=fp8: mps"):
            require("fp8", torch.device("mps"))
