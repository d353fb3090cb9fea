"""A progress bar on a terminal, plain lines elsewhere (a log file, a Slurm job), behind one small interface.

While a sweep has a view of its own on the terminal (`dbexp.pipeline.view`), bars are shown in it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LEAST_SECONDS = 10.0
"""Plain lines come no faster than this, except the last."""
MOST_SECONDS = 60.0
"""While anything advances, plain lines come no slower than this."""
_TENTHS = 10


class Bar(Protocol):
    """What the work in progress tells its watcher."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more units as done.

        Args:
            n: how many; 0 only shows the fields.
            fields: shown beside the count until replaced, such as loss=0.12, lr=1e-4. Floats get three digits;
                None takes a field away.
        """
        ...


@contextmanager
def progress(description: str, total: int, *, done: int = 0, stream: TextIO | None = None) -> Iterator[Bar]:
    """Show how far a piece of work has come, and how long the rest will take.

    Args:
        description: what is being done, a few words.
        total: units of the whole.
        done: units that an earlier, interrupted run has done; they do not count for the time left.
        stream: where to; None: stderr.

    Yields:
        The bar to advance.
    """
    if stream is None and _shared is not None:
        task = _shared.add_task(description, total=total, completed=done, fields="")
        try:
            yield _Rich(_shared, task)
        finally:
            _shared.remove_task(task)
        return
    stream = stream or sys.stderr
    if stream.isatty():
        with bars(stream) as display:
            yield _Rich(display, display.add_task(description, total=total, completed=done, fields=""))
    else:
        yield _Plain(description, total, done, stream)


_shared: Progress | None = None


@contextmanager
def shown_in(display: Progress) -> Iterator[None]:
    """Inside the block bars are added to a display that somebody else draws, and taken away when they are done."""
    global _shared
    before, _shared = _shared, display
    try:
        yield
    finally:
        _shared = before


def bars(stream: TextIO | None = None) -> Progress:
    """An empty display of bars; a bar has a field `fields`, a text.

    Args:
        stream: where it is drawn once it is started; None: standard error.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed,"),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.fields[fields]}", style="dim"),
        console=Console(file=stream or sys.stderr),
    )


class _Fields:
    """The latest value of every field, in the order of first appearance."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}

    def update(self, fields: dict[str, object]) -> str:
        self._values = {name: value for name, value in (self._values | fields).items() if value is not None}
        return "  ".join(f"{name} {_short(value)}" for name, value in self._values.items())


class _Rich:
    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display, self._task, self._fields = display, task, _Fields()

    def advance(self, n: int = 1, **fields: object) -> None:
        self._display.update(self._task, advance=n, fields=self._fields.update(fields))


class _Plain:
    def __init__(self, description: str, total: int, done: int, stream: TextIO) -> None:
        self._description, self._total, self._done, self._stream = description, total, done, stream
        self._first, self._tenth, self._fields = done, _TENTHS * done // max(total, 1), _Fields()
        self._started = self._printed = time.monotonic()

    def advance(self, n: int = 1, **fields: object) -> None:
        self._done += n
        shown = self._fields.update(fields)
        now = time.monotonic()
        tenth = _TENTHS * self._done // max(self._total, 1)
        silence = now - self._printed
        last = n > 0 and self._done >= self._total
        if last or silence >= MOST_SECONDS or (tenth > self._tenth and silence >= LEAST_SECONDS):
            self._printed, self._tenth = now, tenth
            elapsed = now - self._started
            left = elapsed / max(self._done - self._first, 1) * (self._total - self._done)
            times = f"{clock(elapsed)} elapsed" + ("" if last else f", about {clock(left)} left")
            line = f"{self._description}: {self._done}/{self._total}, {times}"
            print(line + (f"  {shown}" if shown else ""), file=self._stream, flush=True)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """About how long, for people: `40 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """h:mm:ss, as the terminal bar shows times."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
