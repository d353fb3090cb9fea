"""Every rule of `config.check`: the message names the field, its value and what would be right."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
from omegaconf import OmegaConf

from dbexp.config import check
from dbexp.config.families import FAMILIES
from dbexp.config.fields import Bounds, Choice, Rule, rule_of
from dbexp.config.schema import Config, DatasetConfig, ModelConfig, SeedsConfig
from dbexp.config.values import flatten
from dbexp.core.errors import ConfigError


def ruled(cls: type = Config, prefix: str = "") -> dict[str, tuple[Any, Rule]]:
    """Dotted name -> type and rule of every parameter."""
    rules: dict[str, tuple[Any, Rule]] = {}
    for field in dataclasses.fields(cls):
        hint, path = get_type_hints(cls)[field.name], f"{prefix}{field.name}"
        nested = isinstance(hint, type) and dataclasses.is_dataclass(hint)
        rules |= ruled(hint, f"{path}.") if nested else {path: (hint, rule_of(field))}
    return rules


CHOICES = {path: rule.names for path, (_, rule) in ruled().items() if isinstance(rule, Choice)}


def good() -> Config:
    """A config that breaks no rule."""
    return Config(
        model=ModelConfig(name="small", path="random"),
        dataset=DatasetConfig(name="rex", path="photos", class_noun="dog", live=True),
    )


def changed(**values: Any) -> Config:
    """`changed(lora__rank=0)` is the good config with lora.rank = 0."""
    made = good()
    for path, value in values.items():
        *parents, last = path.split("__")
        node: Any = made
        for name in parents:
            node = getattr(node, name)
        setattr(node, last, value)
    return made


def problems(cfg: Config) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check.check(cfg)
    return caught.value.problems


def test_flatten_keeps_lists_and_empty_dicts() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [{"e": 2}]}, "f": {}, "g": None}
    assert flatten(nested) == {"a.b.c": 1, "a.d": [{"e": 2}], "f": {}, "g": None}


def test_a_good_config_passes_unchanged() -> None:
    assert check.check(good()) == good()


def test_check_returns_a_copy() -> None:
    given = good()
    check.check(given).lora.rank = 99
    assert given.lora.rank == 16


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"lora__rank": 0}, "lora.rank=0: must be at least 1"),
        ({"lora__rank": -3}, "lora.rank=-3: must be at least 1"),
        ({"lora__alpha": 0.0}, "lora.alpha=0.0: must be greater than 0"),
        ({"lora__text_encoder_rank": 4}, "lora.text_encoder_rank=4: has no effect without lora.text_encoder=true"),
        ({"lora__text_encoder": True, "lora__text_encoder_rank": 0}, "lora.text_encoder_rank=0: must be at least 1"),
        ({"prior__weight": -0.5}, "prior.weight=-0.5: must be at least 0"),
        ({"prior__weight": float("nan")}, "prior.weight=nan: must be at least 0"),
        ({"prior__count": 0}, "prior.count=0: must be at least 1"),
        ({"prior__sampler": "eulr"}, "prior.sampler=eulr: choose one of ddim, ddpm"),
        ({"prior__path": "no/such/folder"}, "prior.path=no/such/folder: there is no such folder"),
        (
            {"prior__prompt": "a photo of {clas}"},
            "prior.prompt='a photo of {clas}': has {clas}: only {token}",
        ),
        ({"train__steps": 0}, "train.steps=0: must be at least 1"),
        ({"train__lr": 0.0}, "train.lr=0.0: must be greater than 0"),
        ({"train__lr": float("inf")}, "train.lr=inf: must be greater than 0"),
        ({"train__lr": float("nan")}, "train.lr=nan: must be greater than 0"),
        ({"train__beta1": 1.0}, "train.beta1=1.0: must be at least 0 and less than 1"),
        ({"train__text_encoder_lr": 1e-5}, "train.text_encoder_lr=1e-05: has no effect without lora.text_encoder=true"),
        ({"train__optimizer": "sgd"}, "train.optimizer=sgd: choose one of adamw, adamw8bit, prodigy"),
        ({"lr_schedule__name": "step"}, "lr_schedule.name=step: choose one of constant, constant_with_warmup"),
        ({"lr_schedule__warmup_steps": -1}, "lr_schedule.warmup_steps=-1: must be at least 0"),
        ({"lr_schedule__horizon": 0}, "lr_schedule.horizon=0: must be at least 1"),
        (
            {"lr_schedule__name": "cosine", "lr_schedule__warmup_steps": 500},
            "lr_schedule.warmup_steps=500: must be smaller than the horizon of 500 steps",
        ),
        (
            {"lr_schedule__name": "linear", "lr_schedule__warmup_steps": 80, "lr_schedule__horizon": 50},
            "lr_schedule.warmup_steps=80: must be smaller than the horizon of 50 steps",
        ),
        (
            {"lr_schedule__name": "polynomial", "lr_schedule__lr_end": 1e-3},
            "lr_schedule.lr_end=0.001: must be smaller than train.lr=0.0001",
        ),
        ({"sample__images_per_prompt": 0}, "sample.images_per_prompt=0: must be at least 1"),
        ({"sample__guidance_scale": -1.0}, "sample.guidance_scale=-1.0: must be at least 0"),
        ({"sample__sampler": "ddimm"}, "sample.sampler=ddimm: choose one of ddim, ddpm"),
        ({"sample__resolution": 100}, "sample.resolution=100: must be a multiple of 8"),
        ({"sample__class_prompt": "a {class"}, "sample.class_prompt='a {class': has a brace too many or too few"),
        ({"model__resolution": 20}, "model.resolution=20: must be a multiple of 8"),
        ({"model__resolution": 0}, "model.resolution=0: must be at least 8"),
        ({"evaluate__confidence": 1.0}, "evaluate.confidence=1.0: must be at least 0 and less than 1"),
        ({"evaluate__max_missing": -0.1}, "evaluate.max_missing=-0.1: must be at least 0"),
        ({"seed": -1}, "seed=-1: must be at least 0"),
        ({"evaluate__seed": -1}, "evaluate.seed=-1: must be at least 0"),
        ({"evaluate__dino__std": [0.1, 0.0, 0.1]}, "evaluate.dino.std=0.0: must be greater than 0"),
        ({"evaluate__dino__mean": [0.1, float("nan"), 0.1]}, "evaluate.dino.mean=nan: must be a finite number"),
        ({"evaluate__dino__mean": []}, "evaluate.dino.mean=[]: give three, for red, green and blue"),
        ({"sample__lora_scale": float("inf")}, "sample.lora_scale=inf: must be a finite number"),
        ({"dataset__path": None}, "dataset.path=null: say which folder"),
        ({"dataset__token": "two words"}, "dataset.token='two words': must be one word"),
        ({"dataset__token": ""}, "dataset.token='': must be one word"),
        ({"dataset__class_noun": " "}, "say what the subject is"),
        ({"dataset__prompt": "a photo of {class}"}, "must contain {token}"),
        ({"dataset__prompt": "a photo of {{token}}"}, "must contain {token}"),
        ({"dataset__prompt": "a photo of {token.real}"}, "has {token.real}: only {token} and {class}"),
        ({"dataset__prompt": "{token} {0}"}, "dataset.prompt='{token} {0}': has {0}: only {token} and {class}"),
    ],
)
def test_a_broken_rule_is_named(values: dict[str, Any], says: str) -> None:
    (message,) = problems(changed(**values))
    assert says in message


@pytest.mark.parametrize("path", CHOICES)
def test_a_bad_choice_lists_the_good_ones(path: str) -> None:
    (message,) = problems(changed(**{path.replace(".", "__"): "nonsense"}))
    assert message.removesuffix(", or null") == f"{path}=nonsense: choose one of {', '.join(CHOICES[path])}"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model__resolution": 24}, "model.resolution=24: must be a multiple of 16"),
        ({"lora__sites": "linear"}, "lora.sites=linear: model.family=other has attention"),
        ({"prior__sampler": "ddim"}, "prior.sampler=ddim: model.family=other has euler"),
        ({"sample__sampler": "ddim"}, "sample.sampler=ddim: model.family=other has euler"),
        (
            {"lora__text_encoder": True},
            "lora.text_encoder=true: model.family=other has no text encoder that can be adapted; give false",
        ),
        (
            {"train__min_snr_gamma": 5.0},
            "train.min_snr_gamma=5.0: model.family=other is trained by flow matching, for which it is not defined; "
            "give null",
        ),
        (
            {"model__precision": "fp16"},
            "model.precision=fp16: model.family=other overflows in it; give bf16 or fp32",
        ),
    ],
)
def test_a_family_has_rules_of_its_own(values: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        FAMILIES,
        "sd",
        dataclasses.replace(
            FAMILIES["sd"],
            samplers=("euler",),
            sites={"attention": ""},
            size_multiple=16,
            text_parts=(),
            flow=True,
            fp16=False,
        ),
    )
    (message,) = problems(changed(**values))
    assert message == says.replace("other", "sd")


@pytest.mark.parametrize("shift", [3, 1.5, "resolution", None])
def test_what_a_shift_may_be(shift: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "sd", dataclasses.replace(FAMILIES["sd"], flow=True))
    assert check.check(changed(train__shift=shift)).train.shift == shift


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train__shift": 0}, "train.shift=0: must be a number greater than 0, resolution, or null"),
        ({"train__shift": True}, "train.shift=true: must be a number greater than 0, resolution, or null"),
        ({"train__shift": "much"}, "train.shift=much: must be a number greater than 0, resolution, or null"),
        ({"train__logit_mean": 1.0}, "train.logit_mean=1: has no effect without train.timesteps=logit_normal"),
        ({"train__logit_std": 2.0}, "train.logit_std=2: has no effect without train.timesteps=logit_normal"),
    ],
)
def test_rules_of_times(values: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "sd", dataclasses.replace(FAMILIES["sd"], flow=True))
    assert problems(changed(**values)) == (says,)


def test_a_noise_schedule_is_not_shifted() -> None:
    (message,) = problems(changed(train__shift=3.0))
    assert (
        message == "train.shift=3.0: model.family=sd has a noise schedule of its own, which is not shifted; give null"
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"train__noise_offset": 0.1},
            "train.noise_offset=0.1: {} has latents of several pixels in one channel; give 0",
        ),
        ({"train__min_snr_gamma": 5.0}, "train.min_snr_gamma=5.0: {} is trained by flow matching"),
        ({"train__guidance": 3.5}, "train.guidance=3.5: {} reads no guidance in training; give 1"),
        ({"lora__text_encoder": True}, "lora.text_encoder=true: {} has no text encoder that can be adapted"),
        ({"lora__sites": "attention+geglu"}, "lora.sites=attention+geglu: {} has attention, attention+mlp, linear"),
        ({"sample__sampler": "ddim"}, "sample.sampler=ddim: {} has euler, unipc"),
        ({"sample__resolution": 72}, "sample.resolution=72: must be a multiple of 16"),
    ],
)
def test_what_flux2_klein_refuses(values: dict[str, Any], says: str) -> None:
    (message,) = problems(changed(model__family="flux2_klein", **values))
    assert message.startswith(says.format("model.family=flux2_klein"))


def test_guidance_that_is_read_as_a_number() -> None:
    """It may be told in training, and there is nothing to steer away from."""
    (message,) = problems(changed(model__family="flux", train__guidance=3.5, sample__negative_prompt="blurry"))
    assert message == (
        "sample.negative_prompt=blurry: model.family=flux reads guidance as a number, and steers away from nothing; "
        "give null"
    )


@pytest.mark.parametrize(("optimizer", "library"), check.OPTIMIZER_LIBRARIES.items())
def test_an_optimizer_needs_its_library(optimizer: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == library else name)
    (message,) = problems(changed(train__optimizer=optimizer))
    assert message.startswith(f"train.optimizer={optimizer}: needs the package {library}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert check.check(changed(train__optimizer=optimizer)).train.optimizer == optimizer


def test_all_problems_come_at_once() -> None:
    said = problems(changed(lora__rank=0, prior__weight=-1.0, train__lr=-1.0, dataset__token="", model__device="cpu"))
    assert [re.split("[=:]", message)[0] for message in said] == [
        "lora.rank",
        "prior.weight",
        "train.lr",
        "dataset.token",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"lr_schedule__warmup_steps": 500},  # constant ignores it
        {"lr_schedule__name": "polynomial", "lr_schedule__warmup_steps": 500, "lr_schedule__horizon": 1000},
        {"prior__weight": 0.0, "prior__path": "no/such/folder"},  # no class images, so nobody looks there
        {"lora__text_encoder": True, "lora__text_encoder_rank": 4, "train__text_encoder_lr": 1e-5},
        {"dataset__source": "dreambooth", "dataset__path": None},
        {"sample__class_images": 0},
        {"train__max_grad_norm": 0.0},
    ],
)
def test_what_is_allowed(values: dict[str, Any]) -> None:
    check.check(changed(**values))


def test_an_unknown_key_is_refused(checked: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="foo"):
        checked("+foo=1")


def test_a_missing_value_is_named(checked: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError) as caught:
        checked("model=custom")
    assert [message.partition(":")[0] for message in caught.value.problems] == ["model.name", "model.path"]


def test_there_is_an_objective(checked: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="objective=null: name a column"):
        checked("objective=null")


def test_a_dangling_interpolation_is_refused(checked: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        checked("train.steps=${nowhere}")


def test_a_wrong_type_is_refused() -> None:
    cfg = OmegaConf.to_container(OmegaConf.structured(good()))
    assert isinstance(cfg, dict)
    cfg["train"]["steps"] = "many"
    with pytest.raises(ConfigError, match="many"):
        check.check(OmegaConf.create(cfg))


def test_the_result_is_free_of_interpolations(checked: Callable[..., Config]) -> None:
    assert checked("seed=7", "seeds.init=3").seeds == SeedsConfig(init=3, data=7, noise=7, prior=7, sample=7)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"train__lr": 2e-3}, "train.lr=0.002 is high"),
        ({"train__lr": 1e-7}, "train.lr=1e-07 is low"),
        ({"train__text_encoder_lr": 1e-2}, "train.text_encoder_lr=0.01 is high"),
        ({"train__steps": 100}, "train.steps=100 is 20 steps for each of 5 pictures"),
        ({"train__steps": 2500}, "train.steps=2500 is 500 steps for each of 5 pictures"),
        ({"lora__rank": 256}, "lora.rank=256"),
    ],
)
def test_advice(values: dict[str, Any], says: str) -> None:
    (sentence,) = check.advice(changed(**values), real_images=5)
    assert says in sentence


@pytest.mark.parametrize("values", [{}, {"train__steps": 250}, {"train__steps": 2000}, {"lora__rank": 128}])
def test_nothing_to_advise(values: dict[str, Any]) -> None:
    assert check.advice(changed(**values), real_images=5) == []


def test_a_model_of_small_pictures_bears_a_higher_rate() -> None:
    small = {"model__resolution": 64, "sample__resolution": 64}
    assert check.advice(changed(**small, train__lr=2e-3), real_images=5) == []
    (sentence,) = check.advice(changed(**small, train__lr=1e-2), real_images=5)
    assert "train.lr=0.01 is high for LoRA: above 0.005" in sentence


def test_a_usual_prodigy_rate_is_no_advice() -> None:
    assert check.advice(changed(train__optimizer="prodigy", train__lr=1.0), real_images=5) == []


def test_every_number_has_bounds() -> None:
    """So that neither a 0 nor a slip of the keyboard passes."""
    rules = {path: rule for path, (hint, rule) in ruled().items() if re.search("int|float", str(hint))}
    numbers = {path: rule for path, rule in rules.items() if isinstance(rule, Bounds)}
    assert numbers.keys() == rules.keys()
    assert {path for path, rule in numbers.items() if _is_open(rule)} == set()
    signed = {path for path, rule in numbers.items() if rule.at_least is None and rule.above is None}
    seeds = {f"seeds.{field.name}" for field in dataclasses.fields(SeedsConfig)}  # any seed will do
    assert signed == {*seeds, "train.logit_mean", "sample.lora_scale", "evaluate.dino.mean"}


def _is_open(rule: Bounds) -> bool:
    return rule.at_most is rule.below is rule.most is None
