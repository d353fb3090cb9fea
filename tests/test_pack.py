"""Which runs can train together."""

from __future__ import annotations

from typing import Any

import pytest

from dbexp import pack
from dbexp.config import Config
from tests import builders

OTHER: dict[str, Any] = {
    "model.family": "other",
    "model.path": "elsewhere",
    "model.revision": "main",
    "model.variant": "fp16",
    "model.vae": "elsewhere",
    "model.single_file_config": "elsewhere",
    "model.precision": "bf16",
    "model.device": "cuda:1",
    "model.resolution": 64,
    "lora.sites": "linear",
    "train.gradient_checkpointing": True,
}


def changed(path: str, value: Any) -> Config:
    config = builders.task().config
    group, name = path.split(".")
    assert getattr(getattr(config, group), name) != value
    setattr(getattr(config, group), name, value)
    return config


def test_every_rule_is_tested() -> None:
    assert set(OTHER) == set(pack.MUST_AGREE)


@pytest.mark.parametrize(("path", "value"), OTHER.items())
def test_what_must_agree(path: str, value: Any) -> None:
    before, after = pack.shared(builders.task().config), pack.shared(changed(path, value))
    assert {name for name in before if before[name] != after[name]} == {path}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lora.rank", 8),
        ("lora.alpha", 1.0),
        ("lora.text_encoder", True),
        ("lr_schedule.name", "cosine"),
        ("prior.weight", 0.0),
        ("train.steps", 3),
        ("train.lr", 1e-5),
        ("train.batch_size", 2),
        ("train.grad_accum", 2),
        ("train.optimizer", "prodigy"),
        ("train.min_snr_gamma", 5.0),
        ("train.crop", "random"),
        ("dataset.name", "other"),
        ("seeds.noise", 7),
        ("model.name", "other name"),
    ],
)
def test_what_may_differ(path: str, value: Any) -> None:
    assert pack.shared(changed(path, value)) == pack.shared(builders.task().config)
