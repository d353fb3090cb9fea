"""What is computed again when a setting changes, and what is not: the keys of the store over whole configs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from dbexp import dataset
from dbexp.config.fields import newer
from dbexp.config.schema import Config, EvaluateConfig
from dbexp.core.hashing import key_of
from dbexp.core.store import Store
from dbexp.evaluate import cached
from dbexp.evaluate.backbones import deferred
from dbexp.evaluate.pictures import Pictures
from dbexp.pipeline.requests import prior_request, sample_request, training_request
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
        training = training_request(config, subject.paths, subject.prompt, classes)
        drawn = {
            "sample": str(sample.sample_prompts(request, model, lora, store)),
            "base": str(sample.sample_prompts(request, model, None, store)),
            "class": str(sample.sample_class(request, model, lora, store)),
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
        "train.graphs=auto",
        "sample.batch_size=3",
        "sample.lanes=merged",
        "model.deterministic=true",
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


def grown(settings: Any, value: str) -> Any:
    """Settings in a later release, which has one more of them."""
    frozen = type(settings).__dataclass_params__.frozen
    added = ("added", str, newer("neutral", neutral="neutral"))
    return make_dataclass("Grown", [added], bases=(type(settings),), frozen=frozen)(**vars(settings), added=value)


TRAINING = builders.training(weight=0.0)
SAMPLING = Sampling("sample", 1, ("a dog",), 1, 2, 3.0, None, 32)
NO_PICTURES = Pictures((), {}, None, (), (), token="sks", class_noun="dog", groups={})
EVALUATE = EvaluateConfig()
# kind of entry -> its key, by the settings that a release may add to
KEYED: dict[str, tuple[Any, Callable[[Any, Store], Any]]] = {
    "train": (TRAINING.cfg, lambda cfg, _: inputs_of(replace(TRAINING, cfg=cfg), builders.model())),
    "lora": (TRAINING.lora, lambda lora, _: inputs_of(replace(TRAINING, lora=lora), builders.model())),
    "lr_schedule": (
        TRAINING.lr_schedule,
        lambda schedule, _: inputs_of(replace(TRAINING, lr_schedule=schedule), builders.model()),
    ),
    "sample": (SAMPLING, lambda sampling, store: sets.inputs_of(sampling, builders.model(), store, None, 1.0)),
    "evaluate": (EVALUATE, lambda cfg, _: cached.inputs_of(NO_PICTURES, (), cfg)),
    "backbone": (EVALUATE.clip, lambda cfg, store: deferred._inputs(replace(cfg, weights=None), store)),
}


@pytest.mark.parametrize("kind", KEYED)
def test_a_new_setting_at_its_neutral_value_changes_no_key(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, key = KEYED[kind]
    store = Store(tmp_path)
    monkeypatch.setattr(deferred, "_files", lambda _: [])
    monkeypatch.setattr(deferred, "_CLASSES", defaultdict(lambda: ("clip", "Clip")))
    assert key_of(key(grown(settings, "neutral"), store)) == key_of(key(settings, store))
    assert key_of(key(grown(settings, "other"), store)) != key_of(key(settings, store))
