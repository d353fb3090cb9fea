"""Samples of a run: which images, in which folders, and how base model and adapter pair up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbexp.config.schema import DatasetConfig
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample import sample
from dbexp.sample.png import read_metadata
from dbexp.sample.prompts import choose
from dbexp.sample.sample import SampleRequest
from dbexp.sample.shots import Sampling

PROMPTS = ["a {token} {class} in the snow", "a red {token} {class}", "a {class} on the beach"]
DOG = DatasetConfig(name="d", path="unused", token="sks", class_noun="dog", live=True)


def request_of(
    *, prompts: Any = PROMPTS, class_images: int = 3, lora_scale: float = 1.0, **changes: Any
) -> SampleRequest:
    """Two images each of three prompts, and three of the class; `changes` are fields of Sampling."""
    groups = {prompt.text: prompt.group for prompt in choose(prompts, DOG)}
    sampling = Sampling("sample", 42, tuple(groups), 2, steps=2, guidance_scale=7.5, sampler=None, resolution=32)
    sampling = replace(sampling, **changes)
    of_class = replace(sampling, stream="class", prompts=("a dog",), images_per_prompt=class_images)
    return SampleRequest(groups, sampling, of_class if class_images else None, lora_scale, batch_size=4)


def distance(a: Path, b: Path) -> int:
    """Largest difference of any pixel, in levels of 0..255."""
    with Image.open(a) as first, Image.open(b) as second:
        return int(np.abs(np.asarray(first).astype(int) - np.asarray(second).astype(int)).max())


def seeds(paths: tuple[Path, ...]) -> list[str]:
    return [read_metadata(path)["seed"] for path in paths]


def test_every_prompt_has_its_images_in_a_folder_of_its_own(model: Model, store: Store) -> None:
    samples = sample.sample_prompts(request_of(), model, None, store)
    folder = samples["a red sks dog"][0].parent.parent
    files = {prompt: [path.relative_to(folder).as_posix() for path in paths] for prompt, paths in samples.items()}
    assert files == {
        "a sks dog in the snow": ["00-a-sks-dog-in-the-snow/0.png", "00-a-sks-dog-in-the-snow/1.png"],
        "a red sks dog": ["01-a-red-sks-dog/0.png", "01-a-red-sks-dog/1.png"],
        "a dog on the beach": ["02-a-dog-on-the-beach/0.png", "02-a-dog-on-the-beach/1.png"],
    }
    for prompt, paths in samples.items():
        assert [(read_metadata(path)["prompt"], read_metadata(path)["k"]) for path in paths] == [
            (prompt, "0"),
            (prompt, "1"),
        ]


def test_settings_reach_the_images(model: Model, lora: Path, store: Store) -> None:
    request = request_of(
        steps=3, guidance_scale=2.0, sampler="ddim", negative_prompt="wet", resolution=64, lora_scale=0.5
    )
    samples = sample.sample_prompts(request, model, lora, store)
    path = samples["a red sks dog"][0]
    metadata = read_metadata(path)
    names = ("steps", "guidance_scale", "sampler", "negative_prompt", "lora_scale")
    assert [metadata[name] for name in names] == ["3", "2.0", "ddim", "wet", "0.5"]
    with Image.open(path) as image:
        assert image.size == (64, 64)


def test_base_and_lora_start_from_the_same_noise(
    model: Model, lora: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise: list[list[bytes]] = []
    original = model.pipeline

    class Spy:
        def __init__(self, *arguments: Any) -> None:
            self.pipe = original(*arguments)
            self.scheduler = self.pipe.scheduler
            noise.append([])

        def __call__(self, **arguments: Any) -> Any:
            noise[-1].extend(generator.get_state().numpy().tobytes() for generator in arguments["generator"])
            return self.pipe(**arguments)

    monkeypatch.setattr(model, "pipeline", Spy)
    off = sample.sample_prompts(request_of(), model, None, store)
    on = sample.sample_prompts(request_of(), model, lora, store)
    assert noise[0] == noise[1]
    assert len(set(noise[0])) == 6
    assert distance(off["a red sks dog"][0], on["a red sks dog"][0]) > 2


def test_the_base_model_ignores_the_strength_and_a_lora_does_not(model: Model, lora: Path, store: Store) -> None:
    base, strong = (sample.sample_prompts(request_of(), model, path, store) for path in (None, lora))
    assert sample.sample_prompts(request_of(lora_scale=0.5), model, None, store) == base
    weak, silent = (sample.sample_prompts(request_of(lora_scale=scale), model, lora, store) for scale in (0.5, 0.0))
    images = [samples["a red sks dog"][0] for samples in (base, silent, weak, strong)]
    assert distance(images[0], images[1]) == 0
    assert distance(images[1], images[2]) > 0
    assert distance(images[2], images[3]) > 0


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_without_guidance_the_negative_prompt_does_nothing(scale: float, model: Model, store: Store) -> None:
    plain, negative = (
        sample.sample_prompts(request_of(guidance_scale=scale, negative_prompt=text), model, None, store)
        for text in ("", "a red dog")
    )
    assert plain != negative
    assert all(distance(paths[0], negative[prompt][0]) == 0 for prompt, paths in plain.items())


def test_another_seed_gives_other_images(model: Model, store: Store) -> None:
    first, other = (sample.sample_prompts(request_of(seed=seed), model, None, store) for seed in (42, 7))
    assert distance(first["a red sks dog"][0], other["a red sks dog"][0]) > 10
    of_class = [sample.sample_class(request_of(seed=seed), model, None, store) for seed in (42, 7)]
    assert seeds(of_class[0]) != seeds(of_class[1])


def test_class_samples_pair_up_and_share_no_noise_with_samples(model: Model, lora: Path, store: Store) -> None:
    request = request_of(prompts=["a {class}", *PROMPTS])
    on, off = (sample.sample_class(request, model, path, store) for path in (lora, None))
    assert [path.name for path in on] == ["0000.png", "0001.png", "0002.png"]
    assert seeds(on) == seeds(off)
    assert on != off
    assert distance(on[0], off[0]) > 2
    assert read_metadata(on[0])["prompt"] == "a dog"
    samples = sample.sample_prompts(request, model, None, store)
    assert not set(seeds(on)) & set(seeds(samples["a dog"]))


def test_no_class_samples_when_none_are_wanted(model: Model, store: Store) -> None:
    assert sample.sample_class(request_of(class_images=0), model, None, store) == ()
    assert not store.root.exists()


def test_what_images_took_is_known_when_they_are_found_again(model: Model, lora: Path, store: Store) -> None:
    request = request_of(class_images=2)
    assert sample.sample_cost(request, model, lora, store) is None
    sample.sample_prompts(request, model, lora, store)
    sample.sample_class(request, model, lora, store)
    cost = sample.sample_cost(request, model, lora, store)
    assert cost is not None and cost["seconds"] > 0 and cost["memory_mib"] > 0 and cost["images"] == 6 + 2
    sample.sample_prompts(request, model, lora, store)
    assert sample.sample_cost(request, model, lora, store) == cost
    assert sample.sample_cost(request, model, None, store) is None, "the base model's are others"
