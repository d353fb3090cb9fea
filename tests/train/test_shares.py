"""The seconds of a pack are shared by the rows of its lanes, while they run."""

from __future__ import annotations

import time

import pytest

from dbexp.train.shares import Shares


def test_seconds_go_by_rows_to_who_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 106.0, 110.0, 115.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    shares = Shares([1, 2, 3])
    shares.charge([True, True, False])  # six seconds of all; the last has ended
    assert shares.seconds == [1, 2, 3]
    shares.charge([True, False, False])  # four seconds of two
    assert shares.seconds == pytest.approx([1 + 4 / 3, 2 + 8 / 3, 3])
    shares.charge([False, False, False])
    assert shares.seconds == pytest.approx([1 + 4 / 3 + 5, 2 + 8 / 3, 3])
    assert sum(shares.seconds) == pytest.approx(15)
