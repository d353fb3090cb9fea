"""Looking at jobs before they run, and training them together; the whole of it is in test_launcher.py."""

from __future__ import annotations

import io
import logging
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from rich.console import Console

from dbexp import models
from dbexp.core.errors import ConfigError, Interrupted, TrainingDiverged
from dbexp.pipeline import run, sweep
from dbexp.pipeline.sweep import Plan, PlannedRun
from dbexp.train import memory
from tests import builders


def job(number: int, *differs: str, device: str = "cpu") -> PlannedRun:
    """A job that shares its training with no other."""
    config = builders.config(seed=number)
    return PlannedRun(number, differs, differs, replace(config, model=replace(config.model, device=device)))


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Nothing is loaded, measured or trained; grows by the numbers of the jobs of every training that is begun."""
    begun: list[list[int]] = []

    def train(tasks: Sequence[int], *_: Any) -> list[object]:
        begun.append(list(tasks))
        return [object() for _ in tasks]

    monkeypatch.setattr(models, "load", lambda *_: None)
    monkeypatch.setattr(run, "make_training", lambda config, *_: config.seeds.init)
    monkeypatch.setattr(memory, "room", lambda tasks, *_: len(tasks))
    monkeypatch.setattr(sweep, "_worked", {})
    monkeypatch.setattr(sweep, "train", train)
    return begun


def test_titles() -> None:
    assert job(3, "rank=2", "seed=1").title == "job 3 (rank=2 seed=1)"
    assert job(0).title == "job 0"


def test_a_problem_of_several_jobs_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [job(0, "rank=2"), job(1, "rank=4"), job(2, "rank=8")]
    problems = {
        id(jobs[0].config): ["all", "one"],
        id(jobs[1].config): ["all", "two"],
        id(jobs[2].config): ["all", "two"],
    }

    def check(config: Any) -> None:
        raise ConfigError(problems[id(config)])

    monkeypatch.setattr(run, "check_inputs", check)
    with pytest.raises(ConfigError) as caught:
        sweep.check(jobs, ["known before"])
    assert caught.value.problems == (
        "known before",
        "all",
        "job 0 (rank=2): one",
        "job 1 (rank=4), job 2 (rank=8): two",
    )


def test_weights_are_looked_for_when_inputs_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise ConfigError("no weights")

    monkeypatch.setattr(run, "check_inputs", lambda _: None)
    monkeypatch.setattr(run, "load", load)
    with pytest.raises(ConfigError, match=r"^no weights$"):
        sweep.check([job(0), job(1)])


def test_a_plan_is_shown() -> None:
    jobs = [job(number, f"prompts=[a,{number}]") for number in range(3)]
    planned = Plan(tuple(jobs), ((jobs[2],), (jobs[0],)))
    assert planned.trained == (jobs[1],)
    buffer = io.StringIO()
    sweep.show(planned, Console(file=buffer))
    lines = buffer.getvalue().splitlines()
    assert lines[0] == "3 jobs: 2 to train in 2 packs, 1 in the store"
    assert [line.split() for line in lines[-3:]] == [
        ["0", "prompts=[a,0]", "pack", "2"],
        ["1", "prompts=[a,1]", "in", "the", "store"],
        ["2", "prompts=[a,2]", "pack", "1"],
    ]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()],
)
def test_without_memory_half_as_many_go_on_together(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def at_most_two(tasks: Sequence[int], *_: Any) -> list[object]:
        if len(tasks) > 2:
            raise error
        packs.append(list(tasks))
        return [object() for _ in tasks]

    monkeypatch.setattr(sweep, "train", at_most_two)
    sweep.train_pack([job(number) for number in range(5)])
    assert packs == [[0, 1], [2, 3], [4]]
    assert "5 lanes do not fit in memory together; from now on at most 2 at a time" in caplog.text

    # packs after it remember, whether their size was given or not; those of another device have to find out
    packs.clear()
    sweep.train_pack([job(number) for number in range(5, 8)])
    sweep.train_pack([job(number) for number in range(8, 11)], 3)
    assert packs == [[5, 6], [7], [8, 9], [10]]
    assert caplog.text.count("do not fit in memory together") == 1
    sweep.train_pack([job(number, device="meta") for number in range(3)])
    assert caplog.text.count("do not fit in memory together") == 2


def test_memory_is_measured_only_for_a_size_that_was_not_given(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "room", lambda *_: 3)
    sweep.train_pack([job(number) for number in range(4)])
    sweep.train_pack([job(number) for number in range(4)], 4)
    assert packs == [[0, 1], [2, 3], [0, 1, 2, 3]]

    monkeypatch.setattr(memory, "room", lambda *_: pytest.fail("one lane has no choice"))
    sweep.train_pack([job(0)])


def test_finish_lines_of_a_lane_are_never_parted(packs: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [replace(job(1), number=number, config=job(1).config) for number in range(3)]
    for number, member in enumerate(lengths):
        member.config.train.steps = 10 * (number + 1)
    calls: list[int] = []

    def counted(tasks: Sequence[int], *_: Any) -> list[object]:
        calls.append(len(tasks))
        return [object() for _ in tasks]

    monkeypatch.setattr(sweep, "train", counted)
    sweep.train_pack([*lengths, job(2)], 1)
    assert sorted(calls) == [1, 3]


def test_one_that_never_fits_is_left_to_its_job(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never(*_: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sweep, "train", never)
    sweep.train_pack([job(7, "rank=2")])
    assert "job 7 (rank=2) does not fit in memory even alone" in caplog.text


def test_a_job_that_cannot_begin_costs_the_others_nothing(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def make_training(config: Any, *_: Any) -> int:
        if config.seeds.init == 1:
            raise RuntimeError("no class images")
        return int(config.seeds.init)

    monkeypatch.setattr(run, "make_training", make_training)
    sweep.train_pack([job(0), job(1), job(2)])
    assert packs == [[0, 2]]
    assert "job 1: left out of its pack: RuntimeError: no class images" in caplog.text


@pytest.mark.parametrize("failure", [RuntimeError("a fault"), OSError("disk full")])
def test_a_pack_that_fails_leaves_its_jobs_to_themselves(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(sweep, "train", fail)
    sweep.train_pack([job(0), job(1)])
    assert f"{failure}); each of its jobs trains alone" in caplog.text


def test_a_lane_that_diverges_is_named(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "train", lambda *_: [object(), TrainingDiverged("NaN at step 2")])
    with caplog.at_level(logging.WARNING):
        sweep.train_pack([job(4), job(5, "lr=1")])
    assert caplog.messages == ["job 5 (lr=1): NaN at step 2"]


@pytest.mark.parametrize("where", ["make_training", "train"])
def test_a_signal_ends_it(packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def stop(*_: Any) -> None:
        raise Interrupted(signal.SIGINT, "stopped")

    monkeypatch.setattr(run if where == "make_training" else sweep, where, stop)
    with pytest.raises(Interrupted):
        sweep.train_pack([job(0), job(1)])


class TestPlan:
    """How many lanes a pack gets when nobody said."""

    @pytest.fixture(autouse=True)
    def nothing_is_trained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "load", lambda *_: None)
        monkeypatch.setattr(run, "find_training", lambda *_: None)

    @pytest.mark.parametrize(
        ("size", "workers", "sizes"),
        [
            (None, 1, [8, 3]),
            (None, 2, [6, 5]),
            (None, 4, [3, 3, 3, 2]),
            (None, 20, [1] * 11),
            (11, 4, [11]),
            (4, 1, [4, 4, 3]),
        ],
    )
    def test_size(self, size: int | None, workers: int, sizes: list[int]) -> None:
        planned = sweep.plan([job(number) for number in range(11)], size, workers=workers)
        assert [len(members) for members in planned.packs] == sizes

    def test_a_gpu_takes_more(self) -> None:
        planned = sweep.plan([job(number, device="cuda") for number in range(20)], None)
        assert [len(members) for members in planned.packs] == [16, 4]

    def test_nothing_to_train(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sweep, "_is_trained", lambda *_: True)
        assert sweep.plan([job(0), job(1)], None).packs == ()


class TestElsewhere:
    """Jobs that other machines run are looked at without their device."""

    def test_their_device_need_not_be_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[str] = []
        monkeypatch.setattr(run, "check_inputs", lambda _: None)
        monkeypatch.setattr(run, "load", lambda config, _: seen.append(config.model.device))
        sweep.check([job(0, device="cuda:7")], elsewhere=True)
        sweep.check([job(0, device="cuda:7")])
        assert seen == ["cpu", "cuda:7"]

    def test_their_precision_is_known_only_if_it_was_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "load", lambda *_: None)
        monkeypatch.setattr(run, "find_training", lambda *_: object())
        monkeypatch.setattr(sweep, "inputs_of", lambda *_: {"version": 0})
        monkeypatch.setattr("dbexp.core.store.Store.find", lambda *_: object())
        auto, given = job(0), job(1)
        auto.config.model.precision = "auto"
        assert sweep.plan([auto, given], None, elsewhere=True).trained == (given,)
        assert sweep.plan([auto, given], None).trained == (auto, given)
