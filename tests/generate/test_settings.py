"""What may be asked of `dbexp-generate`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dbexp.config import help
from dbexp.config.fields import rule_of
from dbexp.core.errors import ConfigError
from dbexp.generate.settings import GenerateConfig, check


def settings(**fields: Any) -> GenerateConfig:
    return GenerateConfig(**{"run": ["run"], "prompt": ["a {token}"], **fields})


def test_every_field_is_explained() -> None:
    docs = help.docs(GenerateConfig)
    assert list(docs) == [field.name for field in dataclasses.fields(GenerateConfig)]
    assert all(sentence.endswith((".", ")")) and len(sentence) > 5 for sentence in docs.values())


def test_help_lists_the_columns() -> None:
    (objective,) = (field for field in dataclasses.fields(GenerateConfig) if field.name == "objective")
    assert rule_of(objective).sentence().startswith("One of dino, clip_i, clip_t, ")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": [], "prompts": "auto"},
        {"init_image": "a.jpg", "strength": 1.0},
        {"init_image": "a.jpg", "mask": "b.png", "paste": False},
        {"run": [], "lora": ["a.safetensors"], "model": "sdxl", "prompt": ["a sks dog"]},
        {"run": [], "lora": ["a.safetensors"], "model": "m", "family": "sd", "token": "sks", "class_noun": "dog"},
        {"lora": ["a.safetensors"]},
        {"sampler": "ddim", "precision": "bf16", "objective": "pres", "width": 64},
    ],
)
def test_what_is_fine(fields: dict[str, Any]) -> None:
    check(settings(**fields))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"run": []}, "run=[]: say which run, run=FOLDER, or which LoRA of another trainer, lora=FILE"),
        ({"run": [], "lora": ["a"], "prompt": ["a dog"]}, "model=null: say which base model"),
        ({"family": "sd"}, "family=sd: has no effect with run=FOLDER"),
        ({"token": "sks"}, "token=sks: has no effect with run=FOLDER"),
        ({"prompt": []}, "prompt: say what to draw"),
        ({"images": 0}, "images=0: must be at least 1"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: must be at least 0"),
        ({"width": 30}, "width=30: must be a multiple of 8"),
        ({"lora_scale": []}, "lora_scale=[]"),
        ({"lora_scale": [1.0, float("inf")]}, "lora_scale=inf: must be a finite number"),
        ({"precision": "fp8"}, "precision=fp8: choose one of auto, fp32, bf16, fp16"),
        ({"sampler": "x"}, "sampler=x: choose one of ddim"),
        ({"objective": "x"}, "objective=x: choose one of dino"),
        ({"init_image": "a.jpg", "strength": 0.0}, "strength=0.0: must be greater than 0 and at most 1"),
        ({"strength": 0.5}, "strength=0.5: has no effect without init_image=FILE"),
        ({"mask": "b.png"}, "mask=b.png: has no effect without init_image=FILE"),
        ({"paste": False}, "paste=false: has no effect without mask=FILE"),
        ({"folder": __file__}, "is a file; give a folder"),
    ],
)
def test_what_is_wrong(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(settings(**fields))
    (problem,) = caught.value.problems
    assert says in problem


def test_several_problems_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check(settings(images=0, width=3, mask="b", sampler="x"))
    assert len(caught.value.problems) == 5
