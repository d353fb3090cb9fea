"""Jobs that are composed from what they share are those that Hydra composes from the files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig

from hydra_plugins.dbexp_pack import _composing

Compose = Callable[..., DictConfig]


@pytest.fixture
def loader(composed: Compose) -> ConfigLoader:
    """Of a Hydra that knows dbexp's configs."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra.config_loader


@pytest.fixture
def sweep(loader: ConfigLoader) -> DictConfig:
    """The config of a sweep, whose folder is named by the clock."""
    cfg = loader.load_configuration("config", ["hydra.job.name=swept", "model=random"], RunMode.MULTIRUN)
    assert cfg.hydra.sweep.dir.startswith("multirun/")  # asked for, so that the clock is remembered
    return cfg


JOBS = [
    ["lora.rank=4", "train.lr=1e-4", "seed=3"],
    ["lora.rank=8", "train.lr=2e-4", "seed=4"],
    ["model=sdxl", "seed=4"],
    ["lora=linear", "lora.rank=8"],
    ["lora={rank:3}"],
    ["dataset.prompt='a {token} dog, sitting'", "tracking.tags=[a,b]", "store=null"],
    ["experiment=reference/diffusers", "objective=[dino,clip_t]", "evaluate.dino.mean=[1,2,3]"],
    ["seed=1", "seed=2"],
    ["seed=${lora.rank}"],
    ["lora.rank=x", "lora.sites=null"],
    ["+lora.more=3"],
    ["++lora.rank=3"],
    ["~experiment"],
    ["hydra.job.name=other", "seed=1"],
]
WRONG = [
    ["nothing=1"],
    ["lora.nothing=1"],
    ["model@evaluate=random"],
    ["model=nothing"],
    ["lora.rank=1,2"],
    ["lora.rank=[1"],
]


def nodes(node: Any, path: str = "") -> Iterator[tuple[Any, ...]]:
    """Everything that OmegaConf knows of a config, node by node."""
    known = dict(vars(node._metadata))
    known["resolver_cache"] = {name: dict(values) for name, values in known.get("resolver_cache", {}).items()}
    yield path, type(node), known, node._value() if not isinstance(node, (DictConfig, ListConfig)) else None
    if isinstance(node, (DictConfig, ListConfig)) and not node._is_none() and not node._is_missing():
        below: Any = node
        for key in list(node.keys()) if isinstance(node, DictConfig) else range(len(node)):
            yield from nodes(below._get_node(key), f"{path}.{key!r}")


def test_the_config_of_a_job_is_hydras(loader: ConfigLoader, sweep: DictConfig) -> None:
    expected = [loader.load_sweep_config(sweep, words) for words in JOBS]
    _composing.remember(loader)
    for _ in range(2):  # a sweeper asks, then a launcher, and each may write into what it gets
        for words, wanted in zip(JOBS, expected, strict=True):
            made = loader.load_sweep_config(sweep, words)
            assert list(nodes(made)) == list(nodes(wanted))
            made.seed = 5
            made.hydra.overrides.task.append("seed=5")


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_what_is_wrong_is_said_by_hydra(loader: ConfigLoader, sweep: DictConfig, words: list[str]) -> None:
    messages = []
    for remembers in (False, True):
        if remembers:
            _composing.remember(loader)
        with pytest.raises(HydraException) as caught:
            loader.load_sweep_config(sweep, words)
        messages.append((type(caught.value), str(caught.value), str(caught.value.__cause__)))
    assert messages[0] == messages[1]


def test_files_are_read_once_for_all_jobs(
    loader: ConfigLoader, sweep: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, configure = [], type(loader).load_configuration

    def counted(*words: Any, **more: Any) -> DictConfig:
        times.append(words)
        return configure(*words, **more)

    monkeypatch.setattr(type(loader), "load_configuration", counted)
    _composing.remember(loader)
    jobs = [[f"model={model}", f"seed={seed}"] for model in ("random", "sd15") for seed in range(10)]
    seeds = [loader.load_sweep_config(sweep, words).seed for words in jobs + jobs]
    assert seeds == [*range(10)] * 4 and len(times) == 2


def test_what_cannot_be_pickled_is_composed_each_time(
    loader: ConfigLoader, sweep: DictConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: Any) -> bytes:
        raise pickle.PicklingError("it's not the same object")

    expected = [loader.load_sweep_config(sweep, words) for words in JOBS[:2]]
    monkeypatch.setattr(pickle, "dumps", refuses)
    _composing.remember(loader)
    for words, wanted in zip(JOBS, expected, strict=False):
        assert loader.load_sweep_config(sweep, words) == wanted


def test_a_loader_that_travels_takes_no_configs_along(loader: ConfigLoader, sweep: DictConfig) -> None:
    _composing.remember(loader)
    before = len(pickle.dumps(loader))
    loader.load_sweep_config(sweep, ["seed=1"])
    assert len(pickle.dumps(loader)) == before
    assert pickle.loads(pickle.dumps(loader)).load_sweep_config(sweep, ["seed=1"]).seed == 1


def test_a_config_travels_to_a_process_that_knows_nothing(loader: ConfigLoader, sweep: DictConfig) -> None:
    cfg = loader.load_sweep_config(sweep, ["seed=7"])
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer).seeds.noise)"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, input=pickle.dumps(cfg), capture_output=True, check=True)
    assert result.stdout.split() == [b"7"]
