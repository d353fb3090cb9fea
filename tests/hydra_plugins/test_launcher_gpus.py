"""Processes of this machine that take packs: on CPUs, with jobs that compute nothing."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from dbexp.core import device
from hydra_plugins.dbexp_pack import _executors, _gpus
from hydra_plugins.dbexp_pack._settings import PackLauncherConf, RayConf, SubmititConf
from hydra_plugins.dbexp_pack._work import PackWork
from tests import builders, run_folders
from tests.hydra_plugins.worker_jobs import (
    always_kills_its_process,
    fails_oddly,
    kills_its_process_once,
    process_and_device,
)
from tests.sweeps import dbexp_command, start, tiny

Works = Callable[[Callable[[DictConfig], Any], Sequence[Sequence[int]]], list[PackWork]]


@pytest.fixture
def works(composed: Any, tmp_path: Path) -> Works:
    """`works(function, [[0, 1], [2]])` are two packs of jobs that call a function; a job's seed is its number.

    Composed anew: what is pickled must be of the classes that are imported, and Hydra executes its plugins again
    whenever a test of its own suite was here.
    """

    def make(function: Callable[[DictConfig], Any], packs: Sequence[Sequence[int]]) -> list[PackWork]:
        packed: list[PackWork] = []
        judged = replace(builders.config(), objective=["dino"])
        for members in packs:
            jobs: list[Any] = []
            configs = []
            for number in members:
                cfg = compose("config", return_hydra_config=True)
                with open_dict(cfg):
                    cfg.seed, cfg.store, cfg.hydra.callbacks = number, str(tmp_path), {}
                    cfg.hydra.sweep.dir = "sweep"
                    cfg.hydra.job.num, cfg.hydra.job.id, cfg.hydra.output_subdir = number, str(number), None
                # what dbexp.pipeline.plan.PlannedRun has, without the seconds that its import takes
                jobs.append(SimpleNamespace(number=number, overrides=(f"seed={number}",), config=judged))
                configs.append(cfg)
            context = HydraContext(config_loader=None, callbacks=Callbacks())  # type: ignore[arg-type]  # no job asks it
            name = f"pack {len(packed) + 1}"
            packed.append(PackWork(name, tuple(jobs), tuple(configs), False, None, function, context, str(tmp_path)))
        return packed

    return make


def run(devices: list[str], works: Sequence[PackWork]) -> dict[int, JobReturn]:
    return dict(_gpus.run(PackLauncherConf(executor="gpus", devices=devices), works))


def test_each_process_sees_its_device_and_takes_pack_after_pack(works: Works, tmp_path: Path) -> None:
    returns = run(["3", "cpu"], works(process_and_device, [[0, 1], [2], [3], [4]]))
    values = {number: returned.return_value for number, returned in returns.items()}
    assert [values[number][2] for number in range(5)] == list(range(5))
    assert values[0][:2] == values[1][:2], "a pack stays together"
    assert {tuple(value[:2]) for value in values.values()} == {(values[0][0], "3"), (values[2][0], "")}
    assert os.getpid() not in {value[0] for value in values.values()}
    assert len(list((tmp_path / "sweep").glob("worker_*.log"))) == 2


def test_a_process_that_dies_costs_only_the_rest_of_its_pack(
    works: Works, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    returns = run(["cpu", "cpu"], works(kills_its_process_once, [[0, 1, 2], [3]]))
    assert {number: returned.return_value for number, returned in returns.items()} == {n: n for n in range(4)}
    began = (tmp_path / "began").read_text().split()
    assert sorted(began) == ["0", "1", "1", "2", "3"], "what had come back is not run again"
    assert "pack 1: the process on device cpu was killed by SIGKILL" in caplog.text
    assert "its 2 jobs are tried once more" in caplog.text


def test_what_dies_twice_is_given_up(works: Works, tmp_path: Path) -> None:
    returns = run(["cpu"], works(always_kills_its_process, [[0, 1, 2], [3]]))
    assert [returns[number].status for number in range(4)] == [
        JobStatus.COMPLETED,
        JobStatus.FAILED,
        JobStatus.FAILED,
        JobStatus.COMPLETED,
    ]
    error = str(returns[1]._return_value)
    assert error.startswith("pack 1: the process on device cpu was killed by SIGKILL") and error.endswith("twice")
    record = json.loads((tmp_path / "sweep" / "1" / "result.json").read_text())
    assert record["status"] == "failed" and "SIGKILL" in record["error"] and record["overrides"] == ["seed=1"]


def test_a_job_that_finished_before_its_process_died_is_not_lost(works: Works, tmp_path: Path) -> None:
    run_folders.make(tmp_path / "sweep" / "2", "seed=2", columns={"dino": 0.5})
    returns = run(["cpu"], works(always_kills_its_process, [[1, 2]]))
    assert returns[1].status is JobStatus.FAILED
    assert returns[2].return_value == 0.5


def test_an_exception_that_cannot_travel_is_told(works: Works) -> None:
    returns = run(["cpu"], works(fails_oddly, [[0]]))
    assert returns[0].status is JobStatus.FAILED
    assert str(returns[0]._return_value) == "Stubborn: 1 and 2"


def test_a_device_that_a_process_does_not_see_is_refused() -> None:
    (problem,) = _gpus.device_problems(["auto", "cuda", "cuda:1", "cuda:0", "cpu", "cuda:1"])
    assert problem.startswith("model.device=cuda:1: with executor=gpus a process sees one device alone")
    assert "hydra.launcher.devices=[1]" in problem


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"executor": "threads"}, "hydra.launcher.executor=threads: choose one of inline, gpus, submitit, ray"),
        ({"devices": ["0"]}, "hydra.launcher.devices=['0']: only executor=gpus has devices to choose"),
        ({"executor": "gpus", "devices": []}, "hydra.launcher.devices=[]: there is no GPU here"),
        ({"executor": "gpus"}, "hydra.launcher.devices=null: there is no GPU here"),
        (
            {"executor": "submitit", "submitit": SubmititConf(cluster="moon")},
            "hydra.launcher.submitit.cluster=moon: choose one of slurm, local, debug",
        ),
        ({"executor": "ray"}, "hydra.launcher.executor=ray: needs the package ray; pip install '.[ray]'"),
    ],
)
def test_settings(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], says: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    find = importlib.util.find_spec

    def lacking(name: str) -> object:
        return None if name == "ray" else find(name) or object()

    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    (problem,) = _executors.problems(PackLauncherConf(**settings))
    assert problem.startswith(says)


def test_all_gpus_unless_some_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = PackLauncherConf(executor="gpus")
    assert _gpus.devices(settings) == ["0", "1", "2"] and _executors.workers(settings) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-8d")
    assert _gpus.devices(settings) == ["5", "GPU-8d"]
    assert _executors.problems(settings) == []


@pytest.mark.usefixtures("composed")
def test_settings_reach_the_launcher_as_plain_values() -> None:
    words = ["hydra/launcher=pack_slurm", "hydra.sweep.dir=sweep", "hydra.launcher.devices=[cpu]",
             "hydra.launcher.submitit.setup=[module load cuda]", "+hydra.launcher.submitit.nodes=2",
             "+hydra.launcher.ray.init.num_cpus=1"]  # fmt: skip
    cfg = compose("config", words, return_hydra_config=True)
    launcher = instantiate(cfg.hydra.launcher)
    expected = SubmititConf(
        folder="sweep/.submitit/%j", name="dbexp", cpus_per_task=8, gpus_per_node=1, setup=["module load cuda"]
    )
    assert vars(launcher.settings.submitit) == {**vars(expected), "nodes": 2}
    assert launcher.settings.ray == RayConf(init={"num_cpus": 1})
    assert launcher.settings.devices == ["cpu"] and type(launcher.settings.devices) is list


def test_a_sweep_in_two_processes(tmp_path: Path) -> None:
    """All of it, in the folder that it gets by default: what Hydra gives the launcher must travel."""
    words = ["hydra/launcher=pack_gpus", "hydra.launcher.devices=[cpu,cpu]", "hydra.launcher.size=1", "lora.rank=2,4"]
    process = start(tmp_path, "-m", *words, *tiny(tmp_path / "store"))
    assert process.wait(600) == 0, (tmp_path / "said.log").read_text()
    (page,) = (tmp_path / "multirun").glob("*/*/report.html")
    assert len(list(page.parent.glob("*/evaluate/metrics.json"))) == 2


def test_the_process_of_the_sweep_touches_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold part of its memory all the time, and none at all could compute on one that is for one process."""
    words = [*tiny(tmp_path / "store"), "hydra.sweep.dir=sweep", "train.steps=2"]
    trained = dbexp_command(tmp_path, *words, "model.precision=bf16", "lora.rank=2", "hydra.run.dir=run")
    assert trained.status == 0, trained.err

    def touched(*_: object, **__: object) -> None:
        raise AssertionError("a GPU was touched")

    for name in ("_lazy_init", "set_device", "get_device_capability", "get_device_properties", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, touched)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(device, "PartialState", touched)
    monkeypatch.setattr(_gpus, "look", lambda _: (device.Gpu("a GPU", 80 << 30, (9, 0)),) * 2)
    planned = dbexp_command(
        tmp_path, "-m", *words, "model.device=auto", "model.precision=auto", "lora.rank=2,4",
        "hydra/launcher=pack_gpus", "hydra.launcher.plan_only=true",
    )  # fmt: skip
    assert planned.status == 0, planned.err
    assert "2 jobs: 1 to train in 1 pack, 1 in the store" in planned.err


def test_a_process_that_ends_at_once_looks_at_gpus() -> None:
    assert _gpus.look(PackLauncherConf(executor="gpus", devices=["cpu", "cpu"])) == ()
    if not torch.cuda.is_available():
        assert _gpus.look(PackLauncherConf(executor="gpus", devices=["0", "1"])) == ()
