"""Every file of conf/dataset against the schema and the DreamBooth dataset's own list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import MISSING, OmegaConf

from dbexp.config.schema import DatasetConfig
from dbexp.dataset import UNNAMED
from dbexp.storybook.world.subjects import SUBJECTS

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf" / "dataset"
LIST = ROOT.parent / "shared" / "data" / "dreambooth" / "prompts_and_classes.txt"

# The DreamBooth dataset (Ruiz et al., CVPR 2023, section 4.1): name, class noun; first the live ones.
LIVE = {
    "cat": "cat",
    "cat2": "cat",
    "dog": "dog",
    "dog2": "dog",
    "dog3": "dog",
    "dog5": "dog",
    "dog6": "dog",
    "dog7": "dog",
    "dog8": "dog",
}
OBJECTS = {
    "backpack": "backpack",
    "backpack_dog": "backpack",
    "bear_plushie": "stuffed animal",
    "berry_bowl": "bowl",
    "can": "can",
    "candle": "candle",
    "clock": "clock",
    "colorful_sneaker": "sneaker",
    "duck_toy": "toy",
    "fancy_boot": "boot",
    "grey_sloth_plushie": "stuffed animal",
    "monster_toy": "toy",
    "pink_sunglasses": "glasses",
    "poop_emoji": "toy",
    "rc_car": "toy",
    "red_cartoon": "cartoon",
    "robot_toy": "toy",
    "shiny_sneaker": "sneaker",
    "teapot": "teapot",
    "vase": "vase",
    "wolf_plushie": "stuffed animal",
}
STORYBOOK = {"dog": True, "dog2": True, "cat": True, "backpack": False, "teapot": False}


def option(name: str) -> DatasetConfig:
    """A file of conf/dataset merged into the schema, which rejects unknown keys and wrong types."""
    merged: Any = OmegaConf.merge(OmegaConf.structured(DatasetConfig), OmegaConf.load(CONF / f"{name}.yaml"))
    values = {str(key): MISSING if OmegaConf.is_missing(merged, key) else merged[key] for key in merged}
    return DatasetConfig(**values)


def test_count() -> None:
    assert len(LIVE) == 9
    assert len(OBJECTS) == 21
    names = {path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml")}
    assert names == {*LIVE, *OBJECTS, "folder", *(f"storybook/{key}" for key in STORYBOOK)}
    assert len(names) == 36


@pytest.mark.parametrize(("name", "noun"), (LIVE | OBJECTS).items())
def test_dreambooth(name: str, noun: str) -> None:
    expected = DatasetConfig(name=name, source="dreambooth", class_noun=noun, live=name in LIVE)
    assert option(name) == expected


@pytest.mark.parametrize("key", STORYBOOK)
def test_storybook(key: str) -> None:
    expected = DatasetConfig(
        name=f"storybook/{key}", source="storybook", class_noun=SUBJECTS[key].class_noun, live=STORYBOOK[key]
    )
    assert option(f"storybook/{key}") == expected
    assert SUBJECTS[key].live == STORYBOOK[key]
    first = (CONF / "storybook" / f"{key}.yaml").read_text().splitlines()[0]
    assert first == "# @package dataset", "or Hydra would put it at dataset.storybook"


def test_every_storybook_subject_has_an_option() -> None:
    assert set(SUBJECTS) == set(STORYBOOK)


def test_folder() -> None:
    expected = DatasetConfig(name=UNNAMED, source="folder", class_noun=MISSING, live=MISSING)
    assert option("folder") == expected


def test_each_opens_with_a_comment() -> None:
    for path in CONF.rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), path


@pytest.mark.skipif(not LIST.is_file(), reason="the dataset's own list is not here")
def test_the_options_are_the_list_that_comes_with_them() -> None:
    lines = LIST.read_text().split("Prompts")[0].splitlines()
    listed = dict(line.split(",") for line in lines if "," in line and not line.startswith("subject_name"))
    assert listed == LIVE | OBJECTS
