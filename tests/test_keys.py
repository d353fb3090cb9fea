"""What is computed again when a setting changes, and what is not: the keys of the store over whole configs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dbexp import dataset
from dbexp.config.schema import Config
from dbexp.core.store import Store
from dbexp.pipeline import run
from dbexp.pipeline.requests import prior_request, sample_request
from dbexp.sample import sample, sets
from dbexp.sample.shots import Sampling
from dbexp.train.result import inputs_of
from tests import builders

Checked = Callable[..., Config]
COMMON = (
    f"model.path={builders.checkpoint()}",
    "model.resolution=32",
    "model.precision=fp32",
    "dataset=folder",
    f"dataset.path={builders.pictures()[0].parent}",
    "dataset.class_noun=dog",
    "dataset.live=true",
    "prior.count=3",
    'sample.prompts=["a sks dog"]',
)


@pytest.fixture
def keys(checked: Checked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Stage -> where the store keeps what a config makes; nothing is drawn."""
    store, model, lora = Store(tmp_path / "store"), builders.model(), tmp_path / "lora"
    lora.write_bytes(b"a LoRA")
    classes = builders.pictures(3, seed=1)

    def find(stage: str, sampling: Sampling, *_: object, lora: Path | None = None, **more: object) -> object:
        scale = more.get("lora_scale", 1.0)
        assert isinstance(scale, float)
        inputs = sets.inputs_of(sampling, model, store, lora, scale)
        return (store.path(stage, inputs) / "prompt" / "0.png",)

    monkeypatch.setattr("dbexp.sample.sample.draw_set", find)

    def of(*overrides: str) -> dict[str, str]:
        config = checked(*COMMON, *overrides)
        request, of_prior = sample_request(config), prior_request(config)
        assert of_prior is not None
        subject = dataset.load(config.dataset, store)
        training = run.training_of(config, subject.paths, subject.prompt, classes)
        drawn = {
            "sample": str(sample.sample_prompts(request, model, lora, store).folder),
            "base": str(sample.sample_prompts(request, model, None, store).folder),
            "class": str(sample.sample_class(request, model, lora, store)[0]),
        }
        return {
            "prior": str(store.path("prior", sets.inputs_of(of_prior.sampling, model, store, None, 1.0))),
            "train": str(store.path("train", inputs_of(training, model))),
            **drawn,
        }

    return of


@pytest.mark.parametrize(
    "override",
    [
        "tracking.mode=online",
        "tracking=disabled",
        "tracking.project=mine",
        "dataset.name=rex",
        "objective=clip_t",
        "evaluate.resamples=10",
        "train.log_every=7",
        "train.gradient_checkpointing=true",
        "sample.batch_size=3",
        "prior.batch_size=3",
    ],
)
def test_how_a_run_is_called_and_kept_is_no_part_of_them(keys: Callable[..., dict[str, str]], override: str) -> None:
    assert keys(override) == keys()


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("lora.rank=3", "train"),
        ("lora.text_encoder=true", "train"),
        ("train.steps=3", "train"),
        ("train.weight_decay=0.5", "train"),
        ("train.checkpoint_every=3", "train"),
        ("lr_schedule.warmup_steps=3", "train"),
        ("prior.weight=0.5", "train"),
        ("seeds.noise=3", "train"),
        ("dataset.token=xyz", "train"),
        ("prior.steps=3", "prior"),
        ("prior.guidance_scale=5", "prior"),
        ("prior.count=2", "prior"),
        ("seeds.prior=3", "prior"),
        ("sample.steps=3", "sample base class"),
        ("sample.sampler=ddim", "sample base class"),
        ("seeds.sample=3", "sample base class"),
        ("sample.lora_scale=0.5", "sample class"),
        ("seed=3", "train prior sample base class"),
    ],
)
def test_what_decides_a_result_is(keys: Callable[..., dict[str, str]], override: str, changed: str) -> None:
    before, after = keys(), keys(override)
    assert {stage for stage in before if before[stage] != after[stage]} == set(changed.split())
