"""Work side by side on the cores of a CPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from dbexp.core import cores
from tests.builders import torch_threads


@pytest.fixture(autouse=True)
def four_threads() -> Iterator[None]:
    with torch_threads(4):
        yield


@pytest.mark.parametrize(("length", "parts"), [(25, 2), (25, 4), (3, 4), (1, 4), (8, 1), (50, 7)])
def test_pieces_are_in_order_and_of_like_length(length: int, parts: int) -> None:
    pieces = cores.split(range(length), parts)
    assert [one for piece in pieces for one in piece] == list(range(length))
    assert len(pieces) == min(length, parts)
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


def test_workers_share_the_threads_and_give_them_back() -> None:
    seen, together = set(), threading.Barrier(2, timeout=60)

    def work(part: int, check: cores.Check) -> int:
        together.wait()  # both at a time, or the barrier breaks
        seen.add((threading.get_ident(), torch.get_num_threads()))
        return part * part

    with closing(cores.side_by_side(work, [1, 2], 2)) as done:
        assert sorted(done) == [(1, 1), (2, 4)]
    assert [threads for _, threads in seen] == [2, 2]
    assert threading.get_ident() not in {thread for thread, _ in seen}
    assert torch.get_num_threads() == 4


def test_a_single_piece_has_the_callers_thread_and_all_of_torchs() -> None:
    def work(part: int, check: cores.Check) -> tuple[int, int]:
        return threading.get_ident(), torch.get_num_threads()

    assert [made for _, made in cores.side_by_side(work, [1], 4)] == [(threading.get_ident(), 4)]


def test_a_fault_ends_the_others_and_is_the_one_that_is_seen() -> None:
    begun, stopped, together = [], [], threading.Barrier(3, timeout=60)

    def work(part: int, check: cores.Check) -> None:
        begun.append(part)
        if part < 3:
            together.wait()
        if part == 0:
            raise ValueError("part 0")
        try:
            for _ in range(6000):
                time.sleep(0.01)
                check()
        except cores.Stopped:
            stopped.append(part)
            raise

    with pytest.raises(ValueError, match="part 0"), closing(cores.side_by_side(work, range(9), 3)) as done:
        list(done)
    assert {0, 1, 2} <= set(begun) and sorted(begun) == sorted([0, *stopped])
    assert len(begun) < 9, "what had not begun was never begun"
    assert torch.get_num_threads() == 4


def test_whoever_stops_listening_stops_the_work() -> None:
    begun = []

    def work(part: int, check: cores.Check) -> int:
        begun.append(part)
        while part:
            time.sleep(0.01)
            check()
        return part

    with closing(cores.side_by_side(work, range(9), 2)) as done:
        assert next(done) == (0, 0)
    assert set(begun) <= {0, 1, 2}
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("device", "policy", "work", "threads"),
    [
        ("cpu", "PASSIVE", 1.0, 1),
        ("cpu", "passive", 2.5 * cores._WORTH_A_THREAD, 2),
        ("cpu", "PASSIVE", 100 * cores._WORTH_A_THREAD, 4),
        ("cpu", "ACTIVE", 1.0, 4),
        ("meta", "PASSIVE", 1.0, 4),
    ],
)
def test_threads_are_as_many_as_pay(
    device: str, policy: str, work: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    with cores.as_many_as_pay(work, torch.device(device)):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == 4


def test_one_piece_at_a_time_where_there_is_a_device() -> None:
    assert cores.count(torch.device("cpu")) == 4
    assert cores.count(torch.device("meta")) == 1
