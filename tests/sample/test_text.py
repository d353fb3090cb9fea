"""Text first: where memory is short, encoders and denoiser are never in it together, and the images are the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dbexp.core.progress import progress
from dbexp.core.store import Store
from dbexp.models import sd
from dbexp.models.sd import StableDiffusion
from dbexp.sample import text
from dbexp.sample.draw import Drawing, Engine
from dbexp.sample.png import read_metadata
from dbexp.sample.shots import Shot
from dbexp.sample.text import encode
from dbexp.train.adapter import save
from dbexp.train.data import prepare
from tests import builders

SHOTS = [Shot("a sks dog", 1, "0.png"), Shot("a red sks dog", 2, "1.png"), Shot("a sks dog", 3, "2.png")]


class Watched(StableDiffusion):
    """A model that notes what is in memory whenever a part is loaded."""

    held: list[set[str]]

    def _load(self, name: str) -> nn.Module:
        self.held.append({*self.parts, name})
        return super()._load(name)


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Its memory has no room for encoders and denoiser side by side."""
    monkeypatch.setattr(text, "_remembered", {})
    model = sd.load(builders.model_config(), Store(tmp_path / "hashes"))
    watched = Watched(
        model.name, model._folder, model._vae_folder, variants={}, device=model.device, dtype=model.dtype,
        identity=model.identity,
    )  # fmt: skip
    watched.held = []
    monkeypatch.setitem(watched.__dict__, "crowded", True)
    return watched


def draw(model: StableDiffusion, folder: Path, lora: Path | None = None, ahead: tuple[str, ...] = ()) -> list[bytes]:
    drawing = Drawing(
        steps=2, guidance_scale=3.0, sampler=None, negative_prompt="blurry", width=32, height=32, batch_size=2,
        lora=lora, ahead=ahead,
    )  # fmt: skip
    engine = Engine(model, drawing)
    with progress("draw", len(SHOTS)) as bar:
        engine.draw(engine.missing(SHOTS, folder, {}), folder, {}, bar, "batch_size")
    assert read_metadata(folder / "0.png")["prompt"] == "a sks dog"
    return [(folder / shot.path).read_bytes() for shot in SHOTS]


@pytest.mark.parametrize("ranks", [{"unet": 2}, {"unet": 2, "text_encoder": 2}])
def test_the_parts_take_turns(crowded: Watched, tmp_path: Path, ranks: dict[str, int]) -> None:
    base, lora = builders.model(), tmp_path / "lora.safetensors"
    assert isinstance(base, StableDiffusion) and not base.crowded
    save(lora, builders.adapter(base, ranks, dict.fromkeys(ranks, 2.0)), base, {})
    crowded.part("unet")  # as after a training
    assert draw(crowded, tmp_path / "crowded", lora) == draw(base, tmp_path / "roomy", lora)
    assert not any({"unet", "text_encoder"} <= held for held in crowded.held)
    assert set(crowded.parts) == {"unet", "vae"}


def test_what_was_encoded_is_remembered(crowded: Watched, tmp_path: Path) -> None:
    draw(crowded, tmp_path / "first", ahead=("a dog", "a sks dog"))
    loads = len(crowded.held)
    draw(crowded, tmp_path / "second")
    encode(crowded, ["a dog"], "blurry")
    assert len(crowded.held) == loads
    encode(crowded, ["a cat"], None)
    assert crowded.held[loads:] == [{"text_encoder"}]


def test_little_is_remembered(crowded: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_MOST_REMEMBERED", 1)
    texts = encode(crowded, ["a dog"], "")
    assert texts.rows(["a dog"])["states"].shape == (1, crowded.room + 2, 16)
    assert not any(text._remembered.values())


def test_a_prompt_is_read_alone(crowded: Watched) -> None:
    together = encode(crowded, ["a dog", "a photo of a red sks dog"], None)
    alone = encode(builders.model(), ["a dog"], None)
    assert torch.equal(together.rows(["a dog"])["states"], alone.rows(["a dog"])["states"])
    assert together.negative_rows(2) is None


def test_training_takes_turns_too(crowded: Watched, tmp_path: Path) -> None:
    crowded.part("unet")
    (data,) = prepare([builders.training()], crowded, Store(tmp_path / "store"))
    assert np.array_equal(data.text["states"].shape, (2, crowded.room + 2, 16))
    assert not any({"unet", "text_encoder"} <= held for held in crowded.held)
    assert not crowded.parts
