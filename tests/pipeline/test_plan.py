"""Looking at runs before they start: what is wrong with which, what is trained, what trains together."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from dbexp import models
from dbexp.core.errors import ConfigError
from dbexp.pipeline import plan, prepare
from dbexp.pipeline.plan import Plan
from tests.sweeps import planned_run


def test_titles() -> None:
    assert planned_run(3, "rank=2", "seed=1").title == "job 3 (rank=2 seed=1)"
    assert planned_run(0).title == "job 0"


def test_a_problem_of_several_jobs_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [planned_run(0, "rank=2"), planned_run(1, "rank=4"), planned_run(2, "rank=8")]
    problems = {
        id(jobs[0].config): ["all", "one"],
        id(jobs[1].config): ["all", "two"],
        id(jobs[2].config): ["all", "two"],
    }

    def check(config: Any, earlier: Sequence[str]) -> None:
        raise ConfigError(problems[id(config)])

    monkeypatch.setattr(prepare, "check_inputs", check)
    faults = plan.Faults(len(jobs))
    faults.everywhere.append("of the sweep")
    faults.note(["known before"], jobs[0].title)
    with pytest.raises(ConfigError) as caught:
        plan.check(jobs, faults)
    assert caught.value.problems == (
        "of the sweep",
        "job 0 (rank=2): known before",
        "all",
        "job 0 (rank=2): one",
        "job 1 (rank=4), job 2 (rank=8): two",
    )


def test_a_problem_of_many_jobs_names_a_few() -> None:
    faults = plan.Faults(300)
    for number in range(299):
        faults.note(["wrong", "wrong"], plan.title(number, ()))
    with pytest.raises(ConfigError) as caught:
        faults.raise_if_any()
    assert caught.value.problems == ("job 0, job 1, job 2, job 3, job 4 and 294 more: wrong",)


def test_a_run_that_may_be_asked_for_has_no_number() -> None:
    asked = planned_run(3, "rank=2", "lr=0.1")
    assert plan.Proposal(**vars(asked)).title == "a job with rank=2 lr=0.1" == plan.title(None, asked.differs)


def test_weights_are_looked_for_when_inputs_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise ConfigError("no weights")

    monkeypatch.setattr(prepare, "check_inputs", lambda *_: None)
    monkeypatch.setattr(prepare, "load", load)
    with pytest.raises(ConfigError, match=r"^no weights$"):
        plan.check([planned_run(0), planned_run(1)])


def test_a_plan_is_shown() -> None:
    jobs = [planned_run(number, f"prompts=[a,{number}]") for number in range(3)]
    planned = Plan(tuple(jobs), ((jobs[2],), (jobs[0],)))
    assert planned.trained == (jobs[1],)
    buffer = io.StringIO()
    plan.show(planned, Console(file=buffer))
    lines = buffer.getvalue().splitlines()
    assert lines[0] == "3 jobs: 2 to train in 2 packs, 1 in the store"
    assert [line.split() for line in lines[-3:]] == [
        ["0", "prompts=[a,0]", "pack", "2"],
        ["1", "prompts=[a,1]", "in", "the", "store"],
        ["2", "prompts=[a,2]", "pack", "1"],
    ]


class TestPlan:
    """How many lanes a pack gets when nobody said."""

    @pytest.fixture(autouse=True)
    def nothing_is_trained(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "load", lambda *_: None)
        monkeypatch.setattr(prepare, "find_training", lambda *_: None)

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
        planned = plan.plan([planned_run(number) for number in range(11)], size, workers=workers)
        assert [len(members) for members in planned.packs] == sizes

    def test_a_gpu_takes_more(self) -> None:
        planned = plan.plan([planned_run(number, device="cuda") for number in range(20)], None)
        assert [len(members) for members in planned.packs] == [16, 4]

    def test_nothing_to_train(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan, "_is_trained", lambda *_: True)
        assert plan.plan([planned_run(0), planned_run(1)], None).packs == ()


class TestElsewhere:
    """Jobs that other machines run are looked at without their device."""

    def test_their_device_need_not_be_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        devices: list[str] = []
        monkeypatch.setattr(prepare, "check_inputs", lambda *_: None)
        monkeypatch.setattr(prepare, "load", lambda config, _: devices.append(config.model.device))
        plan.check([planned_run(0, device="cuda:7")], elsewhere=True)
        plan.check([planned_run(0, device="cuda:7")])
        assert devices == ["cpu", "cuda:7"]

    def test_their_precision_is_known_only_if_it_was_given(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(models, "load", lambda *_: None)
        monkeypatch.setattr(prepare, "find_training", lambda *_: object())
        monkeypatch.setattr(plan, "inputs_of", lambda *_: {"version": 0})
        monkeypatch.setattr("dbexp.core.store.Store.find", lambda *_: object())
        auto, explicit = planned_run(0), planned_run(1)
        auto.config.model.precision = "auto"
        assert plan.plan([auto, explicit], None, elsewhere=True).trained == (explicit,)
        assert plan.plan([auto, explicit], None).trained == (auto, explicit)
