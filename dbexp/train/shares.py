"""How the seconds of a pack are shared by its lanes: by the rows that each has in the batch, while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence


class Shares:
    """Counts from when it is made.

    Args:
        rows: of each lane in a forward pass.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows, self._running = rows, [True] * len(rows)
        self._since = time.perf_counter()
        self.seconds = [0.0] * len(rows)
        """Of each lane until the last `charge`; together they are those of the pack."""

    def charge(self, running: Sequence[bool]) -> None:
        """Share the seconds since the last call among the lanes that ran then.

        Args:
            running: which lanes go on from here.
        """
        now = time.perf_counter()
        total = sum(rows for rows, ran in zip(self._rows, self._running, strict=True) if ran)
        for lane, (rows, ran) in enumerate(zip(self._rows, self._running, strict=True)):
            self.seconds[lane] += (now - self._since) * rows / total if ran else 0.0
        self._since, self._running = now, list(running)
