"""What a config asks the stages for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dbexp.config.schema import Config, DatasetConfig, ModelConfig, PriorConfig, SampleConfig, SeedsConfig
from dbexp.core.errors import ConfigError
from dbexp.pipeline.requests import prior_request, sample_request
from dbexp.sample.shots import Sampling


@pytest.fixture
def cfg() -> Config:
    return Config(
        model=ModelConfig(name="tiny", path="unused", resolution=32),
        dataset=DatasetConfig(name="d", path="unused", token="sks", class_noun="stuffed animal", live=True),
        prior=PriorConfig(count=3, steps=2, batch_size=2, sampler="ddim", guidance_scale=2.0),
        sample=SampleConfig(prompts=["a red {token} {class}"], images_per_prompt=2, resolution=64, class_images=3),
        seeds=SeedsConfig(prior=5, sample=6),
    )


def test_prior_images(cfg: Config) -> None:
    request = prior_request(cfg)
    assert request is not None
    assert (request.batch_size, request.path, request.use_all) == (2, None, False)
    assert request.sampling == Sampling("prior", 5, ("a photo of stuffed animal",), 3, 2, 2.0, "ddim", 32)
    cfg.prior.path, cfg.prior.use_all = "~/mine", True
    request = prior_request(cfg)
    assert request is not None and (request.path, request.use_all) == ("~/mine", True)


def test_without_prior_preservation_there_is_no_request(cfg: Config) -> None:
    cfg.prior.weight, cfg.prior.path = 0.0, "/there/is/no/such/folder"
    assert prior_request(cfg) is None


def test_samples(cfg: Config) -> None:
    cfg.sample = replace(
        cfg.sample, steps=3, guidance_scale=2.0, sampler="ddim", negative_prompt="wet", lora_scale=0.5, batch_size=4
    )
    request = sample_request(cfg)
    assert request.groups == {"a red sks stuffed animal": "property"}
    assert request.sampling == Sampling("sample", 6, ("a red sks stuffed animal",), 2, 3, 2.0, "ddim", 64, "wet")
    assert request.class_sampling == Sampling("class", 6, ("a stuffed animal",), 3, 3, 2.0, "ddim", 64, "wet")
    assert (request.lora_scale, request.batch_size) == (0.5, 4)


def test_no_negative_prompt_is_an_empty_one(cfg: Config) -> None:
    without = sample_request(cfg)
    cfg.sample.negative_prompt = ""
    assert sample_request(cfg) == without


@pytest.mark.parametrize("request_of", [prior_request, sample_request])
def test_what_is_asked_for_depends_on_nothing_else(cfg: Config, request_of: Callable[[Config], object]) -> None:
    first = request_of(cfg)
    cfg.lora.rank, cfg.train.lr, cfg.prior.weight = 4, 1e-3, 0.5
    cfg.seeds.noise = cfg.seeds.data = cfg.seeds.init = 7
    assert request_of(cfg) == first
    cfg.seeds.prior = cfg.seeds.sample = 7
    assert request_of(cfg) != first


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
def test_there_are_as_many_class_samples_as_samples(
    cfg: Config, asked: int | None, listed: Any, each: int, count: int
) -> None:
    cfg.sample.class_images, cfg.sample.prompts, cfg.sample.images_per_prompt = asked, listed, each
    sampling = sample_request(cfg).class_sampling
    assert (sampling.images_per_prompt if sampling else 0) == count


def test_prompt_mistakes_are_told_together(cfg: Config) -> None:
    cfg.sample.prompts = ["a {token} {breed}", "a dog", "a dog"]
    with pytest.raises(ConfigError) as caught:
        sample_request(cfg)
    assert len(caught.value.problems) == 2
