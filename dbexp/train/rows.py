"""Which rows of a batch belong to which slot of the adapters."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TypeAlias

_Segment: TypeAlias = tuple[int, int, int, int]


class Rows:
    """Which rows of the batch each slot owns: slot k the next counts[k] rows. Set anew before every forward pass.

    Neighbouring slots with equally many rows form a segment, which one batched product serves. No row is padding.
    Threads that each send a batch of their own through the base have rows of their own.
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._last: tuple[list[_Segment], int] = ([], 0)

    @property
    def segments(self) -> list[_Segment]:
        """(first slot, last slot + 1, first row, last row + 1)"""
        return self._now()[0]

    @property
    def total(self) -> int:
        """Rows of all slots."""
        return self._now()[1]

    def _now(self) -> tuple[list[_Segment], int]:
        # a thread that never set any is one of autograd's, which computes again what a checkpoint of memory left out
        now: tuple[list[_Segment], int] = getattr(self._own, "value", self._last)
        return now

    def set(self, counts: Sequence[int]) -> None:
        """Give slot k counts[k] rows; 0 for a slot that sits this pass out."""
        segments, total, slot = list[_Segment](), 0, 0
        while slot < len(counts):
            last = slot
            while last < len(counts) and counts[last] == counts[slot]:
                last += 1
            rows = counts[slot] * (last - slot)
            if rows:
                segments.append((slot, last, total, total + rows))
            total += rows
            slot = last
        self._own.value = self._last = (segments, total)
