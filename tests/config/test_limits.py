"""What the check lets pass can be drawn and measured; what it refuses at a limit could not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dbexp import models
from dbexp.config.families import FAMILIES
from dbexp.config.schema import LPIPS_LEAST, LpipsConfig, ModelConfig
from dbexp.core.store import Store
from dbexp.models import Model
from tests import builders
from tests.config.test_check import changed, problems

CASES = [
    (family, sampler)
    for family, facts in FAMILIES.items()
    for sampler in (None, *(facts.samplers if family != "sdxl" else ()))  # whose samplers are those of sd
]


def base(family: str) -> Model:
    """Random weights of a family."""
    cfg = ModelConfig(name=family, family=family, path="random", device="cpu", precision="fp32")
    return models.load(cfg, Store(builders.scratch() / "random"))


def steps_are_sound(scheduler: Any, steps: int) -> bool:
    """Whether a sampler of diffusers takes so many steps and comes to numbers."""
    try:
        scheduler.set_timesteps(steps, **({"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}))
        latents = torch.ones(1, 1, 2, 2)
        for time in scheduler.timesteps:
            scheduler.scale_model_input(latents, time) if hasattr(scheduler, "scale_model_input") else None
            latents = scheduler.step(latents / 100, time, latents, return_dict=False)[0]
    except (AssertionError, IndexError, ValueError):
        return False
    return bool(latents.isfinite().all())


@pytest.mark.parametrize(("family", "sampler"), CASES)
def test_every_sampler_takes_the_fewest_steps_and_the_most(family: str, sampler: str | None) -> None:
    scheduler = base(family).pipeline(sampler).scheduler
    for steps in {FAMILIES[family].least_steps, 2, 3} | {min(FAMILIES[family].steps_of(sampler), 1500)}:
        assert steps_are_sound(scheduler, steps), steps


def test_a_step_short_of_the_fewest_draws_nothing() -> None:
    with pytest.warns(RuntimeWarning, match="invalid value"):
        assert not steps_are_sound(base("qwen_image").pipeline("euler").scheduler, 1)


@pytest.mark.parametrize(
    ("family", "sampler", "steps"),
    [
        ("sd", "unipc", 999),
        ("sd", "ddim", 1001),
        ("flux2_klein", "unipc", 400),
        ("z_image", "unipc", 200),
        ("qwen_image", "unipc", 600),
        ("flux2", "unipc", 400),
        ("flux", "unipc", 400),
        ("sd3", "unipc", 400),
        ("sd3", "dpm++", 600),
    ],
)
def test_more_would_end_in_nothing(family: str, sampler: str, steps: int) -> None:
    assert steps > FAMILIES[family].steps_of(sampler)
    assert not steps_are_sound(base(family).pipeline(sampler).scheduler, steps)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"sample__steps": 999, "sample__sampler": "ddim"},
            "sample.steps=999: must be at most 998 for model.family=sd with sample.sampler=ddim",
        ),
        ({"prior__steps": 2000}, "prior.steps=2000: must be at most 998 for model.family=sd"),
        (
            {"model__family": "z_image", "sample__sampler": "unipc", "sample__steps": 151},
            "sample.steps=151: must be at most 150 for model.family=z_image with sample.sampler=unipc",
        ),
        (
            {"model__family": "qwen_image", "sample__steps": 1},
            "sample.steps=1: must be at least 2 for model.family=qwen_image",
        ),
        (
            {"evaluate__lpips__size": 30},
            "evaluate.lpips.size=30: must be at least 31, the least that evaluate.lpips.net=alex reads",
        ),
        (
            {"sample__resolution": 24},
            "sample.resolution=24: must be at least 31, the least that evaluate.lpips.net=alex reads",
        ),
    ],
)
def test_it_is_told_before_anything_is_computed(values: dict[str, Any], says: str) -> None:
    assert problems(changed(**values)) == (says,)


@pytest.mark.parametrize("net", LPIPS_LEAST)
def test_the_least_that_lpips_reads(net: str) -> None:
    from dbexp.evaluate.backbones.lpips import Lpips

    lpips, least = Lpips(LpipsConfig(net=net, trunk="random"), torch.device("cpu")), LPIPS_LEAST[net]
    assert lpips.encode(torch.zeros(1, 3, least, least)).isfinite().all()
    with pytest.raises(RuntimeError):
        lpips.encode(torch.zeros(1, 3, least - 1, least - 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_least_resolution_is_encoded_and_drawn(family: str) -> None:
    side, model = FAMILIES[family].size_multiple, base(family)
    mean, std = model.encode_images(torch.zeros(1, 3, side, side))
    assert mean.isfinite().all() and std.isfinite().all()
    assert builders.picture(model, steps=FAMILIES[family].least_steps, side=side).shape == (side, side, 3)
