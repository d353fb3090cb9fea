"""Samples of a run: which pictures, in which folders, and how base model and adapter pair up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbexp.config.schema import Config, DatasetConfig, ModelConfig, SampleConfig, SeedsConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample import sample
from dbexp.sample.png import read_metadata

PROMPTS = ["a {token} {class} in the snow", "a red {token} {class}", "a {class} on the beach"]


@pytest.fixture
def cfg() -> Config:
    return Config(
        model=ModelConfig(name="tiny", path="unused", resolution=32),
        dataset=DatasetConfig(name="d", path="unused", token="sks", class_noun="dog", live=True),
        sample=SampleConfig(prompts=PROMPTS, images_per_prompt=2, steps=2, resolution=32, batch_size=4, class_images=3),
    )


def distance(a: Path, b: Path) -> int:
    """Largest difference of any pixel, in levels of 0..255."""
    with Image.open(a) as first, Image.open(b) as second:
        return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())


def seeds(paths: tuple[Path, ...]) -> list[str]:
    return [read_metadata(path)["seed"] for path in paths]


def test_every_prompt_has_its_pictures_in_a_folder_of_its_own(cfg: Config, model: Model, store: Store) -> None:
    samples = sample.sample_prompts(cfg, model, None, store)
    assert samples.prompts == ("a sks dog in the snow", "a red sks dog", "a dog on the beach")
    assert samples.groups == {
        "a sks dog in the snow": "recontextualisation",
        "a red sks dog": "property",
        "a dog on the beach": "other",
    }
    files = {
        prompt: [path.relative_to(samples.folder).as_posix() for path in paths]
        for prompt, paths in samples.images.items()
    }
    assert files == {
        "a sks dog in the snow": ["00-a-sks-dog-in-the-snow/0.png", "00-a-sks-dog-in-the-snow/1.png"],
        "a red sks dog": ["01-a-red-sks-dog/0.png", "01-a-red-sks-dog/1.png"],
        "a dog on the beach": ["02-a-dog-on-the-beach/0.png", "02-a-dog-on-the-beach/1.png"],
    }
    for prompt, paths in samples.images.items():
        assert [(read_metadata(path)["prompt"], read_metadata(path)["k"]) for path in paths] == [
            (prompt, "0"),
            (prompt, "1"),
        ]


def test_settings_reach_the_pictures(cfg: Config, model: Model, lora: Path, store: Store) -> None:
    cfg.sample = dataclasses.replace(
        cfg.sample, steps=3, guidance_scale=2.0, sampler="ddim", negative_prompt="wet", resolution=64, lora_scale=0.5
    )
    samples = sample.sample_prompts(cfg, model, lora, store)
    path = samples.images["a red sks dog"][0]
    said = read_metadata(path)
    names = ("steps", "guidance_scale", "sampler", "negative_prompt", "lora_scale")
    assert [said[name] for name in names] == ["3", "2.0", "ddim", "wet", "0.5"]
    with Image.open(path) as image:
        assert image.size == (64, 64)


def test_base_and_lora_start_from_the_same_noise(
    cfg: Config, model: Model, lora: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise: list[list[bytes]] = []
    original = model.pipeline

    class Spy:
        def __init__(self, *wanted: Any) -> None:
            self.pipe = original(*wanted)
            self.scheduler = self.pipe.scheduler
            noise.append([])

        def __call__(self, **arguments: Any) -> Any:
            noise[-1].extend(generator.get_state().numpy().tobytes() for generator in arguments["generator"])
            return self.pipe(**arguments)

    monkeypatch.setattr(model, "pipeline", Spy)
    off = sample.sample_prompts(cfg, model, None, store)
    on = sample.sample_prompts(cfg, model, lora, store)
    assert noise[0] == noise[1]
    assert len(set(noise[0])) == 6
    assert distance(off.images["a red sks dog"][0], on.images["a red sks dog"][0]) > 2


def test_the_base_model_ignores_the_strength_and_a_lora_does_not(
    cfg: Config, model: Model, lora: Path, store: Store
) -> None:
    base, strong = (sample.sample_prompts(cfg, model, path, store) for path in (None, lora))
    cfg.sample.lora_scale = 0.5
    assert sample.sample_prompts(cfg, model, None, store) == base
    weak = sample.sample_prompts(cfg, model, lora, store)
    cfg.sample.lora_scale = 0.0
    silent = sample.sample_prompts(cfg, model, lora, store)
    pictures = [samples.images["a red sks dog"][0] for samples in (base, silent, weak, strong)]
    assert distance(pictures[0], pictures[1]) == 0
    assert distance(pictures[1], pictures[2]) > 0
    assert distance(pictures[2], pictures[3]) > 0


def test_an_empty_negative_prompt_is_none(cfg: Config, model: Model, store: Store) -> None:
    none = sample.sample_prompts(cfg, model, None, store)
    cfg.sample.negative_prompt = ""
    assert sample.sample_prompts(cfg, model, None, store) == none


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_the_negative_prompt_does_nothing(
    scale: float, cfg: Config, model: Model, store: Store
) -> None:
    cfg.sample.guidance_scale = scale
    plain = sample.sample_prompts(cfg, model, None, store)
    cfg.sample.negative_prompt = "a red dog"
    negative = sample.sample_prompts(cfg, model, None, store)
    assert plain.folder != negative.folder
    assert all(distance(paths[0], negative.images[prompt][0]) == 0 for prompt, paths in plain.images.items())


def test_only_the_sample_seed_decides(cfg: Config, model: Model, store: Store) -> None:
    first = sample.sample_prompts(cfg, model, None, store)
    same = dataclasses.replace(cfg, seeds=SeedsConfig(init=7, noise=7, data=7, prior=7))
    other = dataclasses.replace(cfg, seeds=SeedsConfig(sample=7))
    assert sample.sample_prompts(same, model, None, store) == first
    changed = sample.sample_prompts(other, model, None, store)
    assert distance(first.images["a red sks dog"][0], changed.images["a red sks dog"][0]) > 10
    assert seeds(sample.sample_class(cfg, model, None, store)) != seeds(sample.sample_class(other, model, None, store))


def test_class_images_pair_up_and_share_no_noise_with_samples(
    cfg: Config, model: Model, lora: Path, store: Store
) -> None:
    cfg.sample.prompts = ["a {class}", *PROMPTS]
    on, off = (sample.sample_class(cfg, model, path, store) for path in (lora, None))
    assert [path.name for path in on] == ["0000.png", "0001.png", "0002.png"]
    assert seeds(on) == seeds(off)
    assert on != off
    assert distance(on[0], off[0]) > 2
    assert read_metadata(on[0])["prompt"] == "a dog"
    samples = sample.sample_prompts(cfg, model, None, store)
    assert not set(seeds(on)) & set(seeds(samples.images["a dog"]))


def test_no_class_images_when_none_are_wanted(cfg: Config, model: Model, store: Store) -> None:
    cfg.sample.class_images = 0
    assert sample.sample_class(cfg, model, None, store) == ()
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("asked", "listed", "each", "count"),
    [
        (None, "live", 4, 100),
        (None, "live", 1, 25),
        (None, ["a {token} {class}"], 2, 25),
        (7, "live", 4, 7),
        (0, "live", 4, 0),
    ],
)
def test_there_are_as_many_class_images_as_samples(
    cfg: Config, asked: int | None, listed: Any, each: int, count: int
) -> None:
    cfg.sample.class_images, cfg.sample.prompts, cfg.sample.images_per_prompt = asked, listed, each
    assert sample.class_count(cfg) == count


def test_prompts_that_miss_the_subject_or_are_too_long_are_warned_about(cfg: Config, model: Model) -> None:
    cfg.sample.prompts = ["a {token}, red", "a sksy dog", "a {token} {class} " + "in the snow " * 20]
    said = sample.warnings(cfg, model)
    assert len(said) == 2
    assert said[0].startswith("'a sksy dog' does not contain the token 'sks'")
    assert "has 63 tokens: the text encoder reads only the first 30" in said[1]
    assert sample.warnings(dataclasses.replace(cfg, sample=SampleConfig()), model) == []


def test_prompt_mistakes_are_told_together_and_without_a_model(cfg: Config) -> None:
    cfg.sample.prompts = ["a {token} {breed}", "a dog", "a dog"]
    with pytest.raises(ConfigError) as caught:
        sample.prompts(cfg)
    assert len(caught.value.problems) == 2
