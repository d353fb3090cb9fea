"""The view of a sweep: what it shows when, and that it shows nothing where there is no terminal."""

from __future__ import annotations

import io
import sys
import time

import pytest
from rich.console import Console

from dbexp.core.progress import progress
from dbexp.pipeline.view import SweepView, current, watching


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds; passes only when told."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def lines(view: SweepView, height: int = 40, width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_from_the_first_to_the_last(clock: list[float]) -> None:
    view = SweepView({0: ["rank=2"], 1: ["rank=4"], 2: ["rank=8"]}, [[0, 1]], {0: 100, 1: 50, 2: 50})
    assert lines(view)[0].startswith("3 jobs   0:00:00 elapsed")
    assert lines(view)[1].split() == ["job", "rank", "stage", "step", "loss", "steps/s", "left"]
    assert lines(view)[2].split() == ["0", "2", "waiting"]
    assert lines(view)[4].split() == ["2", "8", "trained", "0/50"]

    view.trains({0: 100, 1: 50})
    for step in (1, 11, 21):
        clock[0] += 5
        view.losses(0, [{"step": step - 1, "loss": 0.5}, {"step": step, "loss": 0.25}])
        view.losses(1, [{"step": step, "loss": 0.125}])
    assert lines(view)[0] == "3 jobs, pack 1 of 1   0:00:15 elapsed, about 0:00:40 left of this training"
    assert lines(view)[2].split() == ["0", "2", "train", "21/100", "0.25", "2.00", "0:00:40"]
    assert lines(view)[3].split() == ["1", "4", "train", "21/50", "0.125", "2.00", "0:00:14"]

    view.losses(0, [{"step": 100, "loss": 0.1}])
    view.losses(1, [{"step": 50, "loss": 0.1}])
    assert [line.split()[2] for line in lines(view)[2:]] == ["trained"] * 3
    view.begins(0)
    view.stage("sample")
    assert lines(view)[2].split()[:3] == ["0", "2", "sample"]
    clock[0] += 7
    view.ends(0, "finished")
    view.begins(1)
    view.ends(1, "failed")
    assert "3 jobs, 1 finished, 1 failed   0:00:22 elapsed, about 0:00:04 left" in lines(view)[0]


def test_the_time_left_is_that_of_everything_still_to_do(clock: list[float]) -> None:
    """Two packs of two lanes, 10 lane-steps a second; a run takes 20 s beside its training, the first one 60 s."""
    view = SweepView({n: [f"rank={n}"] for n in range(4)}, [[0, 1], [2, 3]], dict.fromkeys(range(4), 100))
    view.trains({0: 100, 1: 100})
    clock[0] += 30  # before the first step: kernels are chosen, the optimizer's state is made
    for step in range(10, 101, 10):
        clock[0] += 2
        view.losses(0, [{"step": step, "loss": 0.5}])
        view.losses(1, [{"step": step, "loss": 0.5}])
    for number, seconds in ((0, 60), (1, 20)):
        view.begins(number)
        view.stage("sample")
        clock[0] += seconds
        view.ends(number, "finished")
    # 200 lane-steps at 18 s for 180, and two runs at the median of 60 and 20
    assert lines(view)[0].endswith("about 0:01:40 left")
    view.trains({2: 100, 3: 100})
    for number in (2, 3):
        view.losses(number, [{"step": 100, "loss": 0.5}])
    view.begins(2)
    assert lines(view)[0].endswith("about 0:01:20 left")
    clock[0] += 10
    assert lines(view)[0].endswith("about 0:01:10 left"), "it goes on while a run samples"
    clock[0] += 100
    assert lines(view)[0].endswith("about 0:00:40 left"), "a run that takes longer leaves the others their time"


def test_a_low_terminal_shows_those_that_something_happens_to() -> None:
    view = SweepView({number: [f"seed={number}"] for number in range(30)}, [list(range(30))], {})
    view.trains(dict.fromkeys((20, 21), 10))
    rows = lines(view, height=14)
    assert [line.split()[0] for line in rows[2:]] == ["0", "1", "2", "3", "4", "20", "21", "and"]
    assert rows[-1].split() == ["and", "23", "more"]


def test_eighty_columns_cut_values_of_parameters_and_never_numbers_or_states(clock: list[float]) -> None:
    words = ["dataset.path=photographs/of/a/dog/with/a/long/name", "lr_schedule=polynomial", "rank=128", "weight=0.75"]
    view = SweepView(dict.fromkeys(range(99, 103), words), [[99, 100], [101, 102]], {})
    view.trains({99: 12000, 100: 12000})
    for step in (10000, 11000):
        clock[0] += 500
        view.losses(99, [{"step": step, "loss": 0.0123456}])
    rows = lines(view, width=80)
    assert all(len(row) <= 80 for row in rows)
    assert rows[2].split()[-5:] == ["train", "11000/12000", "0.0123", "2.00", "0:08:20"]
    assert rows[4].split()[-1] == "waiting"
    assert "…" in rows[2] and "128" in rows[2].split()


def test_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=20)
    before, raw = current(), sys.stderr
    with watching({0: ["rank=2"]}, [[0]], {0: 10}, console) as view:
        assert current() is view and isinstance(view, SweepView)
        view.begins(0)
        view.stage("sample")
        with progress("sample, adapter on", 4) as bar:
            bar.advance(step="3/20")
            written = "".join(lines(view))
            assert "sample, adapter on" in written and "1/4" in written and "step 3/20" in written
        assert "adapter on" not in "".join(lines(view))
        print("a line of the log", file=sys.stderr)
    assert current() is before and sys.stderr is raw
    assert isinstance(console.file, io.StringIO)
    assert "a line of the log" in console.file.getvalue() and "rank" in console.file.getvalue()


def test_elsewhere_nothing_is_drawn() -> None:
    console = Console(file=io.StringIO())
    with watching({0: ["rank=2"]}, [[0]], {0: 10}, console) as view:
        view.trains({0: 10})
        view.losses(0, [{"step": 1, "loss": 1.0}])
        view.begins(0)
        view.stage("sample")
        view.ends(0, "finished")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""
