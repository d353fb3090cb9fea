"""Pictures in bulk and ahead of need. Picture `index` of a seed is the same one whoever draws it, in whatever order."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from dbexp.storybook.pretrain.corpus import broad_picture, example
from dbexp.storybook.world.world import draw

Pictures = npt.NDArray[np.uint8]
T = TypeVar("T")


def draw_broad(seed: int, start: int, count: int) -> Pictures:
    """Pictures `start` to `start + count` of the gamut: uint8 [count, 64, 64, 3]."""
    rngs = (random.Random(f"broad {seed}/{i}") for i in range(start, start + count))
    return np.stack([np.asarray(broad_picture(rng)) for rng in rngs])


def draw_captioned(seed: int, start: int, count: int) -> tuple[Pictures, list[str]]:
    """Captioned examples `start` to `start + count`: uint8 [count, 64, 64, 3] and the captions."""
    pictures, captions = [], []
    for i in range(start, start + count):
        rng = random.Random(f"captioned {seed}/{i}")
        chosen = example(rng)
        pictures.append(np.asarray(draw(chosen.identity, chosen.scene, rng)))
        captions.append(chosen.caption)
    return np.stack(pictures), captions


class Stream(Generic[T]):
    """Chunks of a numbered sequence, in order; a jump, as after a restart, opens it again at the new place.

    Args:
        draw: seed, start, count -> the chunk.
        seed: the first argument of `draw`.
        executor: draws chunks in advance; None draws each when it is asked for.
        depth: how many chunks in advance.
    """

    def __init__(
        self, draw: Callable[[int, int, int], T], seed: int, executor: Executor | None, depth: int = 64
    ) -> None:
        self.draw, self.seed, self.executor, self.depth = draw, seed, executor, depth
        self._chunks: Iterator[T] | None = None
        self._next = -1

    def take(self, first: int, count: int) -> T:
        """The chunk from `first` on; the next call is expected to go on from `first + count` with the same count."""
        if self._chunks is None or self._next != first:
            calls = (partial(self.draw, self.seed, start, count) for start in range(first, 1 << 40, count))
            self._chunks = ahead(calls, self.executor, self.depth)
        self._next = first + count
        return next(self._chunks)


def ahead(calls: Iterable[Callable[[], T]], executor: Executor | None, depth: int) -> Iterator[T]:
    """Results of `calls` in order; with an executor, up to `depth` of them are computed in advance."""
    if executor is None:
        for call in calls:
            yield call()
        return
    waiting: deque[Future[T]] = deque()
    for call in calls:
        waiting.append(executor.submit(call))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()
