"""What runs are called, what tells them apart, and what does not matter."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from dbexp.config.schema import Config
from dbexp.config.values import flatten, plain
from dbexp.runs.names import differing, matters, run_name, short_names, titles, what_differs

DEFAULTS = flatten(plain(Config())) | {f"seeds.{stream}": 42 for stream in ("init", "data", "noise", "prior", "sample")}


def config() -> Config:
    cfg = Config()
    cfg.dataset.name, cfg.model.name = "dog3", "random"
    return cfg


@pytest.mark.parametrize("name", ["store", "tracking.mode", "hydra/launcher", "experiment", "objective", "tracking"])
def test_where_and_how_a_run_is_kept_does_not_matter(name: str) -> None:
    assert not matters(name)


@pytest.mark.parametrize("name", ["lora.rank", "dataset", "seed", "lr_schedule"])
def test_what_it_is_does(name: str) -> None:
    assert matters(name)


def test_short_names_stay_distinct() -> None:
    assert short_names(["lora.rank", "prior.steps", "train.steps", "lr_schedule.name"]) == {
        "lora.rank": "rank",
        "prior.steps": "prior.steps",
        "train.steps": "train.steps",
        "lr_schedule.name": "lr_schedule",
    }


@pytest.mark.parametrize(
    ("overrides", "differs"),
    [
        ([], []),
        ([["a.rank=1"]], [()]),
        ([["a.rank=1", "b=2"], ["a.rank=2", "b=2"]], [("rank=1",), ("rank=2",)]),
        ([["a.path=1", "b.path=1"], ["a.path=2", "b.path=2"]], [("a.path=1", "b.path=1"), ("a.path=2", "b.path=2")]),
        ([["a=x=y"], []], [("a=x=y",), ()]),
        (
            [["dataset=storybook/dog"], ["dataset=storybook/cat"]],
            [("dataset=storybook/dog",), ("dataset=storybook/cat",)],
        ),
        ([["+a.rank=1", "~b"], ["++a.rank=2"]], [("rank=1", "b"), ("rank=2",)]),
        ([["lr_schedule.name=linear"], []], [("lr_schedule=linear",), ()]),
    ],
)
def test_what_differs(overrides: list[list[str]], differs: list[tuple[str, ...]]) -> None:
    assert what_differs(overrides) == differs


def test_differing_parameters() -> None:
    configs = [DEFAULTS | {"lora.rank": 2, "store": "here"}, DEFAULTS | {"lora.rank": 4, "store": "there"}, {}]
    assert differing(configs) == ["lora.rank"]
    assert differing(configs[:1]) == []


def test_one_seed_stands_for_five() -> None:
    seeds = [name for name in DEFAULTS if name == "seed" or name.startswith("seeds.")]
    assert differing([DEFAULTS | dict.fromkeys(seeds, 1), DEFAULTS | dict.fromkeys(seeds, 2)]) == ["seed"]
    assert differing([DEFAULTS | {"seeds.init": 1}, DEFAULTS | {"seeds.init": 2}]) == ["seeds.init"]


def test_titles() -> None:
    overrides = {Path("0"): ["lora.rank=2", "seed=1"], Path("1"): ["lora.rank=4", "seed=1"]}
    assert [*titles(overrides).values()] == ["0: rank=2", "1: rank=4"]
    assert titles({Path("0"): ["lora.rank=2"]}) == {Path("0"): "0"}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["lora.rank=16", "prior.weight=0"], "rank=16 weight=0"),
        (["dataset=dog3", "lr_schedule=polynomial"], "dog3 lr_schedule=polynomial"),
        (["experiment=reference/diffusers/rank32", "seed=1"], "reference/diffusers/rank32 seed=1"),
        (["train.lr=1e-4", "hydra/launcher=joblib", "tracking=online", "store=/tmp/x"], "lr=1e-4"),
        (["+train.lr=1", "++seed=2"], "lr=1 seed=2"),
        (["train.steps=10", "sample.steps=4"], "train.steps=10 sample.steps=4"),
        (
            ["dataset=folder", "dataset.path=photos/dog3", "dataset.class_noun='soft toy'", "seed=2"],
            "dog3 seed=2",
        ),
        (["dataset.token=xyz", "model.path=/home/someone/weights/v1"], "token=xyz path=v1"),
        ([], "dog3 2026-11-22 10:05"),
        (["tracking.mode=disabled"], "dog3 2026-11-22 10:05"),
    ],
)
def test_a_runs_name_tells_what_is_special_about_it(overrides: list[str], name: str) -> None:
    cfg = config()
    cfg.experiment = "reference/diffusers/rank32"
    assert run_name(cfg, overrides, datetime(2026, 11, 22, 10, 5)) == name


def test_a_long_name_ends_in_an_ellipsis() -> None:
    name = run_name(config(), [f"sample.prompts=[{','.join('abcdef' * 40)}]"])
    assert len(name) == 100
    assert name.endswith("…")


def test_a_name_of_ones_own_wins() -> None:
    cfg = config()
    cfg.tracking.name = "final"
    assert run_name(cfg, ["lora.rank=16"]) == "final"
