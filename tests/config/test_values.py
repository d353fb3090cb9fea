"""A config as plain values, and plain values as a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import OmegaConf

from dbexp.config import check, schema
from dbexp.config.schema import Config
from dbexp.config.values import plain, structured
from dbexp.core.errors import ConfigError
from tests.config.test_check import good


@pytest.mark.parametrize(
    ("override", "columns"),
    [
        ("objective=dino", ["dino"]),
        ("objective=dino+clip_t", ["dino", "clip_t"]),
        ("objective='dino, clip_t'", ["dino", "clip_t"]),
        ("objective=[dino,clip_t]", ["dino", "clip_t"]),
        ("objective=recommend", ["recommend"]),
        ("objective=0.5*dino+0.5*clip_t", ["0.5*dino+0.5*clip_t"]),
        ("objective='dino - 0.5*pres, clip_t'", ["dino-0.5*pres", "clip_t"]),
        ("objective=[dino-pres,div]", ["dino-pres", "div"]),
    ],
)
def test_an_objective_is_a_list_of_columns(
    override: str, columns: list[str], checked: Callable[..., Config], composed: Callable[..., Any]
) -> None:
    config = checked(override)
    assert config.objective == columns
    assert check.check(config) == config
    assert structured(plain(config)) == config
    assert structured(OmegaConf.to_container(composed(override))).objective == columns


@pytest.mark.parametrize("settings", [None, [1, 2], "words", OmegaConf.create([1])])
def test_what_is_no_group_of_parameters_is_refused(settings: object) -> None:
    with pytest.raises(ConfigError, match="is no group of parameters"):
        structured(settings)


def test_plain_is_json_like() -> None:
    made = plain(good())
    assert made["lora"]["rank"] == 16
    assert made["evaluate"]["dino"]["mean"] == list(schema.IMAGENET_MEAN)
    assert made == plain(OmegaConf.structured(good()))
