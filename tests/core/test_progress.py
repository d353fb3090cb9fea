"""Progress on a terminal and in a log file."""

from __future__ import annotations

import io
import time

import pytest

from dbexp.core.progress import progress


class Clock:
    """Time that passes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def plain(clock: Clock, total: int, seconds_each: float, done: int = 0) -> list[str]:
    stream = io.StringIO()
    with progress("sample", total, done=done, stream=stream) as bar:
        for _ in range(total - done):
            clock.now += seconds_each
            bar.advance()
    return stream.getvalue().splitlines()


def test_a_log_gets_a_line_for_every_tenth(clock: Clock) -> None:
    lines = plain(clock, 200, 2.0)
    assert len(lines) == 10
    assert lines[0] == "sample: 20/200, 0:00:40 elapsed, about 0:06:00 left"
    assert lines[-1] == "sample: 200/200, 0:06:40 elapsed"


def test_quick_work_gets_its_last_line_only(clock: Clock) -> None:
    assert plain(clock, 1000, 0.001) == ["sample: 1000/1000, 0:00:01 elapsed"]


def test_slow_work_is_heard_of_every_minute(clock: Clock) -> None:
    lines = plain(clock, 1000, 20.0)
    assert lines[0].startswith("sample: 3/1000, 0:01:00 elapsed, about 5:32:20 left")
    assert 300 <= len(lines) <= 400


def test_what_an_earlier_run_did_counts_as_done_but_not_for_the_time_left(clock: Clock) -> None:
    lines = plain(clock, 100, 60.0, done=90)
    assert lines[0] == "sample: 91/100, 0:01:00 elapsed, about 0:09:00 left"


def test_fields_stay_until_replaced_or_taken_away(clock: Clock) -> None:
    stream = io.StringIO()
    with progress("train", 4, stream=stream) as bar:
        for fields in ({"loss": 0.123456, "lr": 1e-4}, {"loss": 0.1}, {"step": "3/50"}, {"lr": None, "step": None}):
            clock.now += 100
            bar.advance(**fields)
    shown = [line.split("  ", 1)[1] for line in stream.getvalue().splitlines()]
    assert shown == ["loss 0.123  lr 0.0001", "loss 0.1  lr 0.0001", "loss 0.1  lr 0.0001  step 3/50", "loss 0.1"]


def test_showing_fields_alone_neither_counts_nor_repeats_the_last_line(clock: Clock) -> None:
    stream = io.StringIO()
    with progress("train", 1, stream=stream) as bar:
        bar.advance()
        bar.advance(0, loss=1.0)
    assert stream.getvalue().splitlines() == ["train: 1/1, 0:00:00 elapsed"]


def test_a_terminal_gets_a_bar() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with progress("sample", 3, done=1, stream=stream) as bar:
        bar.advance(step="2/50")
        bar.advance(step=None, loss=0.5)
    text = stream.getvalue()
    assert "sample" in text
    assert "3/3" in text
    assert "loss 0.5" in text
    assert "step" not in text.splitlines()[-1]


def test_nothing_to_do_says_nothing(clock: Clock) -> None:
    assert plain(clock, 0, 1.0) == []
    assert plain(clock, 5, 1.0, done=5) == []
