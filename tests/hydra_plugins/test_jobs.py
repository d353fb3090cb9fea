"""All jobs of a sweep are looked at before the first starts, under every launcher, and a refusal changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

import dbexp.pipeline.run
from dbexp.config.schema import Config
from tests import builders
from tests.sweeps import dbexp_command, earlier_sweep, everything, tiny


class Foreign(Launcher):
    """A launcher that another package might bring, whose jobs run in processes of their own."""

    launched: list[Sequence[Sequence[str]]] = []  # noqa: RUF012  # of the class: Hydra makes the instance

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra wants one."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Note the jobs, and run none."""
        Foreign.launched.append(job_overrides)
        return []


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Runs that began."""
    configs: list[Config] = []

    def begin(config: Config, *_: Any) -> dict[str, float]:
        configs.append(config)
        return {}

    monkeypatch.setattr(dbexp.pipeline.run, "run", begin)
    monkeypatch.setattr(Foreign, "launched", [])
    return configs


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> str:
    """Words that choose the launcher of another package."""
    name = "hydra_plugins.foreign.Foreign"  # Hydra takes them from nowhere else
    monkeypatch.setitem(Plugins.instance().class_name_to_class, name, Foreign)
    return f"hydra.launcher._target_={name}"


LAUNCHERS = {"pack": ["hydra/launcher=pack"], "basic": ["hydra/launcher=basic"]}
REFUSED = {
    "a setting": (["lora.rank=4,0"], "job 1 (rank=0): lora.rank=0: must be at least 1"),
    "a type": (["lora.rank=4,many"], "job 1 (rank=many): "),
    "a name": (["lora=attention,nonsense"], "job 1 (lora=nonsense): lora=nonsense: there is no such option"),
    "pictures": (["lora.rank=4,8", "dataset.path=nowhere"], "dataset.path=nowhere: there is no folder"),
    "prompts": (["sample.prompts=['a dog'],['a {cat}']"], "{cat}: "),
    "steps": (["sample.steps=2,5000"], "job 1 (steps=5000): sample.steps=5000: must be at most 998"),
    "weights": (["lora.rank=4,8", "evaluate.dino.weights=none.pt"], "evaluate.dino.weights="),
    "objectives": (["lora.rank=4,8", "objective=nonsense"], "objective=nonsense"),
    "folders": (["lora.rank=4,8", "hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: is the folder of job 0 too"),
    "places": (["lora.rank=4,8", "hydra.sweep.subdir=file/${hydra.job.num}"], "sweep/file is a file; give another"),
}


@pytest.mark.parametrize(("fault", "launcher"), list(zip(REFUSED, itertools.cycle(LAUNCHERS), strict=False)))
def test_a_refused_sweep_changes_nothing(fault: str, launcher: str, tmp_path: Path, started: list[Config]) -> None:
    words, says = REFUSED[fault]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "file").touch()
    before = earlier_sweep(tmp_path / "sweep")
    argv = ["-m", "hydra.sweep.dir=sweep", *LAUNCHERS[launcher], *tiny(tmp_path / "store"), *words]
    outcome = dbexp_command(tmp_path, *argv)
    assert outcome.status == 1 and says in outcome.err and "Traceback" not in outcome.err, outcome.err
    assert outcome.err.count("dbexp: ") == 1 and not started
    assert everything(tmp_path / "sweep") == before
    assert {path.name for path in tmp_path.iterdir()} <= {"sweep", "store"}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_plan_alone_changes_nothing(launcher: str, tmp_path: Path, started: list[Config]) -> None:
    before = earlier_sweep(tmp_path / "sweep")
    argv = ["-m", "hydra.sweep.dir=sweep", "hydra.launcher.plan_only=true", *tiny(tmp_path / "store"), "lora.rank=2,4"]
    if launcher == "pack":
        outcome = dbexp_command(tmp_path, *argv, "hydra.sweeper.max_batch_size=1")
        assert outcome.status == 0 and "2 jobs: 2 to train in 1 pack" in outcome.err, outcome.err
    else:
        outcome = dbexp_command(tmp_path, *argv, *LAUNCHERS[launcher])
        assert outcome.status == 1 and "plan_only" in outcome.err
    assert everything(tmp_path / "sweep") == before and not started


@pytest.mark.parametrize("words", [["hydra.sweeper.max_batch_size=1"], ["hydra/launcher=basic"], []], ids=" ".join)
def test_every_problem_of_every_job_at_once(words: list[str], tmp_path: Path, started: list[Config]) -> None:
    there = builders.pictures()[0].parent
    swept = ["lora.rank=2,0", f"dataset.path={there},nowhere", "prior.path=none", "sample.steps=5000"]
    outcome = dbexp_command(tmp_path, "-m", *words, *tiny(tmp_path / "store"), *swept)
    assert (outcome.status, outcome.err.partition("\n")[0], started) == (1, "dbexp: 4 problems", [])
    for field in ("lora.rank=0: ", "dataset.path=nowhere: ", "prior.path=none: ", "sample.steps=5000: "):
        assert outcome.err.count(field) == 1, outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_of_another_package(foreign: str, tmp_path: Path) -> None:
    argv = ["-m", "hydra/launcher=basic", foreign, *tiny(tmp_path / "store"), "hydra.sweep.dir=sweep"]
    outcome = dbexp_command(tmp_path, *argv, "lora.rank=2,0")
    assert outcome.status == 1 and "job 1 (rank=0): lora.rank=0: must be at least 1" in outcome.err, outcome.err
    assert not Foreign.launched and not (tmp_path / "sweep").exists()
    # its processes may be on machines with devices that are not here
    outcome = dbexp_command(tmp_path, *argv, "lora.rank=2,4", "model.device=cuda:7")
    assert outcome.status == 0, outcome.err
    assert [[word for word in words if "rank" in word] for words in Foreign.launched[0]] == [
        ["lora.rank=2"],
        ["lora.rank=4"],
    ]


def test_what_was_looked_at_is_not_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dbexp.pipeline import prepare

    looked: list[int] = []
    whole = prepare.check_inputs

    def check_inputs(config: Config, earlier: Sequence[str]) -> None:
        looked.append(config.lora.rank)
        whole(config, earlier)

    monkeypatch.setattr(prepare, "check_inputs", check_inputs)
    argv = ["hydra.launcher.plan_only=true", *tiny(tmp_path / "store"), "lora.rank=2,4,8"]
    assert dbexp_command(tmp_path, "-m", *argv).status == 0
    assert looked == [2, 4, 8]
