"""Training the runs of a sweep in packs; the whole of it is in hydra_plugins/test_launcher.py."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dbexp import models
from dbexp.core.errors import Interrupted, TrainingDiverged
from dbexp.pipeline import prepare, sweep
from dbexp.train import memory
from tests.sweeps import planned_run


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Nothing is loaded, measured or trained; grows by the numbers of the jobs of every training that is begun."""
    trainings: list[list[int]] = []

    def train(tasks: Sequence[int], *_: Any, **__: Any) -> list[object]:
        trainings.append(list(tasks))
        return [object() for _ in tasks]

    monkeypatch.setattr(models, "load", lambda *_: None)
    monkeypatch.setattr(prepare, "make_training", lambda config, *_: config.seeds.init)
    monkeypatch.setattr(memory, "room", lambda tasks, *_: len(tasks))
    monkeypatch.setattr(sweep, "_most_lanes", {})
    monkeypatch.setattr(sweep, "train", train)
    return trainings


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), MemoryError()],
)
def test_without_memory_half_as_many_go_on_together(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def at_most_two(tasks: Sequence[int], *_: Any, **__: Any) -> list[object]:
        if len(tasks) > 2:
            raise error
        packs.append(list(tasks))
        return [object() for _ in tasks]

    monkeypatch.setattr(sweep, "train", at_most_two)
    sweep.train_pack([planned_run(number) for number in range(5)])
    assert packs == [[0, 1], [2, 3], [4]]
    assert "5 lanes do not fit in memory together; from now on at most 2 at a time" in caplog.text

    # packs after it remember, whether their size was given or not; those of another device have to find out
    packs.clear()
    sweep.train_pack([planned_run(number) for number in range(5, 8)])
    sweep.train_pack([planned_run(number) for number in range(8, 11)], 3)
    assert packs == [[5, 6], [7], [8, 9], [10]]
    assert caplog.text.count("do not fit in memory together") == 1
    sweep.train_pack([planned_run(number, device="meta") for number in range(3)])
    assert caplog.text.count("do not fit in memory together") == 2


def test_memory_is_measured_only_for_a_size_that_was_not_given(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "room", lambda *_: 3)
    sweep.train_pack([planned_run(number) for number in range(4)])
    sweep.train_pack([planned_run(number) for number in range(4)], 4)
    assert packs == [[0, 1], [2, 3], [0, 1, 2, 3]]

    monkeypatch.setattr(memory, "room", lambda *_: pytest.fail("one lane has no choice"))
    sweep.train_pack([planned_run(0)])


def test_finish_lines_of_a_lane_are_never_parted(packs: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [replace(planned_run(1), number=number, config=planned_run(1).config) for number in range(3)]
    for number, member in enumerate(lengths):
        member.config.train.steps = 10 * (number + 1)
    calls: list[int] = []

    def counted(tasks: Sequence[int], *_: Any, **__: Any) -> list[object]:
        calls.append(len(tasks))
        return [object() for _ in tasks]

    monkeypatch.setattr(sweep, "train", counted)
    sweep.train_pack([*lengths, planned_run(2)], 1)
    assert sorted(calls) == [1, 3]


def test_one_that_never_fits_is_left_to_its_job(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(sweep, "train", never)
    sweep.train_pack([planned_run(7, "rank=2")])
    assert "job 7 (rank=2) does not fit in memory even alone" in caplog.text


def test_a_job_that_cannot_begin_costs_the_others_nothing(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def make_training(config: Any, *_: Any) -> int:
        if config.seeds.init == 1:
            raise RuntimeError("no class images")
        return int(config.seeds.init)

    monkeypatch.setattr(prepare, "make_training", make_training)
    sweep.train_pack([planned_run(0), planned_run(1), planned_run(2)])
    assert packs == [[0, 2]]
    assert "job 1: left out of its pack: RuntimeError: no class images" in caplog.text


@pytest.mark.parametrize("failure", [RuntimeError("a fault"), OSError("disk full")])
def test_a_pack_that_fails_leaves_its_jobs_to_themselves(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(sweep, "train", fail)
    sweep.train_pack([planned_run(0), planned_run(1)])
    assert f"{failure}); each of its jobs trains alone" in caplog.text


def test_a_lane_that_diverges_is_named(
    packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweep, "train", lambda *_, **__: [object(), TrainingDiverged("NaN at step 2")])
    with caplog.at_level(logging.WARNING):
        sweep.train_pack([planned_run(4), planned_run(5, "lr=1")])
    assert caplog.messages == ["job 5 (lr=1): NaN at step 2"]


@pytest.mark.parametrize("where", ["make_training", "train"])
def test_a_signal_ends_it(packs: list[list[int]], monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise Interrupted(signal.SIGINT, "stopped")

    monkeypatch.setattr(prepare if where == "make_training" else sweep, where, stop)
    with pytest.raises(Interrupted):
        sweep.train_pack([planned_run(0), planned_run(1)])
