"""Hydra's grammar as Optuna's distributions, and a trial's parameters as overrides that Hydra reads back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dbexp.config.overrides import parse
from dbexp.core.errors import ConfigError

optuna = pytest.importorskip("optuna.distributions")
_space = pytest.importorskip("hydra_plugins.dbexp_search._space")
CategoricalDistribution, FloatDistribution = optuna.CategoricalDistribution, optuna.FloatDistribution
IntDistribution = optuna.IntDistribution


def read(*arguments: str, params: Mapping[str, Any] | None = None) -> Any:
    """The space of a command line and settings."""
    loader: Any = SimpleNamespace(get_group_options=lambda group, results_filter: ["constant", "cosine", "linear"])
    return _space.read(params or {}, arguments, loader)


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        ("x=4,8,16", CategoricalDistribution([4, 8, 16])),
        ("x=choice(0.0,0.5,true)", CategoricalDistribution([0.0, 0.5, True])),
        ("x=constant,'a b',null,[1,2]", CategoricalDistribution(["constant", "'a b'", "null", "[1,2]"])),
        ("x=shuffle(choice(b,a))", CategoricalDistribution(["b", "a"])),
        ("lr_schedule=glob(co*)", CategoricalDistribution(["constant", "cosine"])),
        ("x=range(4,33,4)", IntDistribution(4, 32, step=4)),
        ("x=range(5,0,-2)", IntDistribution(1, 5, step=2)),
        ("x=shuffle(range(3))", IntDistribution(0, 2)),
        ("x=range(0.0,1.0,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("x=interval(1,8)", FloatDistribution(1.0, 8.0)),
        ("x=int(interval(1.0,8.0))", IntDistribution(1, 8)),
        ("x=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("x=interval(0,1.5)", FloatDistribution(0.0, 1.5)),
        ("x=tag(log, interval(1e-5, 2e-3))", FloatDistribution(1e-5, 2e-3, log=True)),
    ],
)
def test_what_is_searched(override: str, distribution: Any) -> None:
    space = read(override)
    assert dict(space.searched) == {override.partition("=")[0]: distribution}
    assert space.fixed == ()


def test_the_command_line_beats_the_settings() -> None:
    params = {"lora.rank": "choice(4,8)", "train.lr": "interval(0.0,1.0)", "seed": 3, "train.steps": "1,2"}
    space = read("lora.rank=16", "train.lr=1e-4,2e-4", "prior.weight=0", "~tracking.group", params=params)
    assert dict(space.searched) == {
        "train.steps": CategoricalDistribution([1, 2]),
        "train.lr": CategoricalDistribution([1e-4, 2e-4]),
    }
    assert space.fixed == ("seed=3", "lora.rank=16", "prior.weight=0", "~tracking.group")


def test_a_trial_in_the_words_of_a_command_line() -> None:
    space = read("+x='a b',\"c,d\",null,true", "y=interval(0.0,1.0)", "z=1")
    choices = space.searched["+x"].choices
    read_back = [parse(space.words({"+x": choice, "y": 0.00001})[0]) for choice in choices]
    assert [override.value() for override in read_back if override] == ["a b", "c,d", None, True]
    assert space.words({"+x": choices[0], "y": 0.00001})[1:] == ("y=1e-05", "z=1")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["lora.rank=4"], "nothing is searched"),
        (["x=tag(log,interval(0.0,1.0))"], "x=tag\\(log,interval\\(0.0,1.0\\)\\): "),
        (["x=interval(2,1)"], "x=interval\\(2,1\\): "),
    ],
)
def test_what_cannot_be_searched(arguments: Sequence[str], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read(*arguments)


def test_every_point_of_a_grid() -> None:
    points = read("a=x,y", "b=range(0.0,0.3,0.1)", "c=int(interval(1,2))").points()
    assert len(points) == 12 and points[0] == {"a": "x", "b": 0.0, "c": 1}
    with pytest.raises(ConfigError, match="x: an interval has no finite number of values"):
        read("x=interval(0.0,1.0)", "y=1,2").points()
