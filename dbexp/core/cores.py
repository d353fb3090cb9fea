"""Work on the cores of a CPU: side by side where it can be, and with no more threads than there is work for.

An operation on small tensors does not divide well. On two cores the built-in model's UNet gains little from a second
thread inside its operations, and much from a second batch beside the first; and a training step of two rows is slower
with two threads than with one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import pairwise
from threading import Event
from typing import TypeVar

import torch

_WORTH_A_THREAD = 7e9
"""Weights times positions of a forward pass that a thread must have to be worth waking. Between what was measured on
two cores of an AMD EPYC with the built-in model: two rows (4e9) are as fast with one thread as with two, eight (1.5e10)
a tenth faster with two."""

SMALL = 1e11
"""Weights times positions of a lane up to which passes side by side beat a large one: the built-in model
has 4e9, and a model of half as many weights again was measured too. The bound itself is a guess: with many more weights
each pass would read them all again."""

Part = TypeVar("Part")
Result = TypeVar("Result")

Check = Callable[[], None]
"""To be called now and then by work that takes long: raises `Stopped` when nobody waits for it any more."""


class Stopped(Exception):
    """Work was given up because something else failed, or the user wants to stop."""


def count(device: torch.device) -> int:
    """How many pieces of work a device does best at a time: the threads that torch may use on a CPU, else one."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@contextmanager
def as_many_as_pay(work: float, device: torch.device) -> Iterator[None]:
    """Inside the block torch has no more threads than a forward and backward pass on a CPU is worth.

    A function of the work alone, never of a clock, so the same run rounds the same way every time. It applies where
    threads sleep between operations (`OMP_WAIT_POLICY=PASSIVE`, which the command sets): waking them is what costs.

    Args:
        work: weights of the network times rows times positions of a row.
        device: where it is done.
    """
    threads = torch.get_num_threads()
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    fewer = max(1, min(threads, int(work / _WORTH_A_THREAD)))
    if device.type != "cpu" or not passive or fewer == threads:
        yield
        return
    torch.set_num_threads(fewer)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def split(whole: Sequence[Part], parts: int) -> list[Sequence[Part]]:
    """Cut a sequence into so many pieces in a row, of like length; fewer where it is shorter than that."""
    parts = max(1, min(parts, len(whole)))
    ends = [len(whole) * number // parts for number in range(parts + 1)]
    return [whole[start:end] for start, end in pairwise(ends)]


class Workers:
    """Threads that stay until they are closed, each with a share of torch's threads; for work of a moment, many times.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self.count, self._threads = count, torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def map(self, work: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
        """What comes of every part, in order. A single part is worked on in the caller's thread."""
        if len(parts) == 1:
            return [work(parts[0])]
        if self._pool is None:
            self._pool = _pool(self.count, self._threads)
        return list(self._pool.map(work, parts))

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            torch.set_num_threads(self._threads)
            self._pool = None


def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    def begin() -> None:
        torch.set_num_threads(max(1, threads // workers))  # of this thread alone, and of threads yet to come

    return ThreadPoolExecutor(workers, "dbexp-core", begin)


def side_by_side(
    work: Callable[[Part, Check], Result], parts: Sequence[Part], workers: int
) -> Generator[tuple[Part, Result], None, None]:
    """Work on all parts, several at a time; close the iterator (`contextlib.closing`) to give up what is not done.

    Args:
        work: for one part, in any thread. It sees only a share of torch's threads.
        parts: what to work on.
        workers: most at a time; 1: in the caller's thread.

    Yields:
        Each part with what came of it, as soon as it is done.

    Raises:
        Exception: the first that `work` raised; the other parts are given up.
    """
    workers = min(workers, len(parts))
    if workers <= 1:
        for part in parts:
            yield part, work(part, lambda: None)
        return
    threads, stopping = torch.get_num_threads(), Event()

    def check() -> None:
        if stopping.is_set():
            raise Stopped

    with _pool(workers, threads) as pool:
        futures = {pool.submit(work, part, check): part for part in parts}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            stopping.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)
