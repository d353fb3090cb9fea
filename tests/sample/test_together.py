"""Images of several LoRAs in one batch are those that each gives alone, to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dbexp import models
from dbexp.core import cores
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.models.beside import side_by_side
from dbexp.models.lora_file import merged
from dbexp.sample import draw as engine
from dbexp.sample import png, sets
from dbexp.sample.shots import Sampling, Shot, shots
from dbexp.sample.together import LaneSet, draw_together, pays
from dbexp.train.adapter import save
from tests import builders
from tests.models import drawing

SNOW = Sampling("sample", 1, ("a sks dog in the snow", "a red sks dog"), 2, 2, 5.0, "ddim", 32, "blurry")
CLASS = replace(SNOW, stream="class", prompts=("a dog",), images_per_prompt=3)


@pytest.fixture(scope="module")
def loras(model: Model, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of ranks 2 and 5, the second with a text encoder."""
    paths = []
    for rank, parts in ((2, ["unet"]), (5, ["unet", "text_encoder"])):
        path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
        adapter = builders.adapter(model, dict.fromkeys(parts, rank), dict.fromkeys(parts, 3.0), strength=1.0)
        save(path, adapter, model, {"rank": rank})
        paths.append(path)
    return paths


def alone(each: LaneSet, model: Model, store: Store) -> list[Path]:
    files = sets.draw_set(
        "sample", each.sampling, model, store, lora=each.lora, lora_scale=each.lora_scale, batch_size=4, description=""
    )
    return list(files)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("threads", [1, 2])
def test_sets_are_found_and_hold_the_same_images(
    guidance: float, threads: int, model: Model, loras: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "count", lambda device: threads)
    sizes: list[int] = []
    original = engine.sample_batch

    def sample(pipe: Any, batch: Sequence[Shot], *others: Any) -> NDArray[np.uint8]:
        sizes.append(len(batch))
        return original(pipe, batch, *others)

    wanted = [
        LaneSet(replace(SNOW, guidance_scale=guidance), loras[0], 1.0),
        LaneSet(replace(SNOW, guidance_scale=guidance), loras[1], 1.0),
        LaneSet(replace(CLASS, guidance_scale=guidance), loras[1], 0.5),
    ]
    expected = [alone(each, model, Store(tmp_path / "alone")) for each in wanted]
    store = Store(tmp_path / "together")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "sample_batch", sample)
        draw_together("sample", wanted, model, store, batch_size=4, grows=False)
        assert sizes == [4, 4, 3]
        found = [alone(each, model, store) for each in wanted]
    assert len(sizes) == 3, "nothing is drawn again"
    for mine, theirs in zip(found, expected, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one.name == other.name and png.read_metadata(one) == png.read_metadata(other)
            assert np.abs(pixels(one) - pixels(other)).max() <= 1
    cost = sets.cost_of("sample", CLASS if guidance > 1 else wanted[2].sampling, model, store, loras[1], 0.5)
    assert cost["images"] == 3 and cost["seconds"] > 0
    assert np.abs(pixels(found[0][0]) - pixels(found[1][0])).max() > 10, "the LoRAs differ"


def pixels(path: Path) -> NDArray[np.int64]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image).astype(np.int64)


def test_an_interruption_keeps_what_was_drawn_and_the_base(
    model: Model, loras: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: id(module) for name, module in model.part("unet").named_modules()}
    wanted = [LaneSet(SNOW, lora, 1.0) for lora in loras]
    store, original, calls = Store(tmp_path), engine.sample_batch, 0

    def stop(*arguments: Any) -> NDArray[np.uint8]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine, "sample_batch", stop)
        draw_together("sample", wanted, model, store, batch_size=4, grows=False)
    assert len(list(tmp_path.rglob("*.partial/**/*.png"))) == 4
    assert {name: id(module) for name, module in model.part("unet").named_modules()} == before
    draw_together("sample", wanted, model, store, batch_size=4, grows=False)
    inputs = [sets.inputs_of(SNOW, model, store, lora, 1.0) for lora in loras]
    assert all((folder := store.find("sample", each)) and len(list(folder.rglob("*.png"))) == 4 for each in inputs)
    assert len(shots(SNOW)) == 4


@pytest.mark.parametrize("family", ["sd", "flux2_klein", "z_image"])
def test_rows_of_every_family(family: str, tmp_path: Path) -> None:
    """Guidance puts rows behind each other, or passes them one after the other."""
    model = models.load(builders.model_config(path="random", resolution=64, family=family), Store(tmp_path / "store"))
    paths = []
    for number, strength in enumerate((0.05, 0.1)):
        paths.append(tmp_path / f"{number}.safetensors")
        drawing.save_lora(model, "attention", paths[-1], strength)
    batch = drawing.batch(model, 4.0)
    drawn = []
    for path in paths:
        with merged(model, path, parts=[model.family.denoiser]):
            drawn.append(drawing.draw(model, batch))
    with side_by_side(model, [(path, 1.0) for path in paths]) as rows:
        rows.set([0, 1], model.device)
        together = drawing.draw(model, batch)
    assert np.allclose(together[0], drawn[0][0], atol=1e-5) and np.allclose(together[1], drawn[1][1], atol=1e-5)
    assert not np.allclose(together[1], drawn[0][1], atol=1e-2), "the second row has a LoRA of its own"
    models.forget()


def test_rows_must_be_those_of_the_batch(model: Model, loras: list[Path]) -> None:
    with side_by_side(model, [(loras[0], 1.0)]) as rows:
        rows.set([0, 0], model.device)
        assert torch.equal(rows.of(4), torch.zeros(4, dtype=torch.int64))
        with pytest.raises(RuntimeError, match="3 rows came of a batch of 2 images"):
            rows.of(3)


@pytest.mark.parametrize(
    ("counts", "batch", "answer"),
    [
        ([1, 1, 1, 1], 32, True),
        ([1, 1], 32, False),
        ([2, 2], 32, False),
        ([1, 33], 32, False),
        ([120, 100], 32, False),
        ([33, 33, 33], 32, False),
        ([33] * 8, 32, False),
        ([1] * 8, 1, False),
        ([40], 32, False),
        ([], 32, False),
    ],
)
def test_sets_of_few_images_pay(counts: list[int], batch: int, answer: bool) -> None:
    assert pays(counts, batch) is answer
