"""One view of a whole sweep on a terminal: its jobs, the lanes that train, the stage that runs, and the time left.

Elsewhere (a log file, a Slurm job) nothing is redrawn: there the plain lines of `dbexp.core.progress` and of the log
tell the same. Whoever has something to tell asks for `current()`, which is a view that shows nothing unless a sweep has
opened one, so nobody needs to know whether anybody watches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dbexp.core.progress import bars, clock, shown_in

_WAITING, _TRAINED = "waiting", "trained"
_REFRESH_PER_SECOND = 2.0
_RATE_SECONDS = 1.0
"""A rate from less time than this says nothing."""
_OTHER_LINES = 6
"""Of the terminal's height, kept free beside the rows of jobs."""


class View(Protocol):
    """Who is told how a sweep goes on. Jobs are called by their number."""

    def trains(self, steps: Mapping[int, int]) -> None:
        """These jobs train together from now on; job -> steps of its whole training."""
        ...

    def losses(self, job: int, rows: Sequence[Mapping[str, float]]) -> None:
        """A job's training has come further; rows of its history, with step and loss."""
        ...

    def begins(self, job: int) -> None:
        """A job runs from now on."""
        ...

    def stage(self, name: str) -> None:
        """The job that runs has come to a stage."""
        ...

    def ends(self, job: int, status: str) -> None:
        """A job has ended: finished, diverged, failed."""
        ...


class Unseen:
    """The view when nobody watches."""

    def trains(self, steps: Mapping[int, int]) -> None:
        """Do nothing."""

    def losses(self, job: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Do nothing."""

    def begins(self, job: int) -> None:
        """Do nothing."""

    def stage(self, name: str) -> None:
        """Do nothing."""

    def ends(self, job: int, status: str) -> None:
        """Do nothing."""


_current: View = Unseen()


def current() -> View:
    """The view of the sweep that runs in this process; one that shows nothing if there is none."""
    return _current


@contextmanager
def watching(
    differs: Mapping[int, str], packs: Sequence[Sequence[int]], console: Console | None = None
) -> Iterator[View]:
    """Show a sweep while the block runs, if there is a terminal to show it on.

    Inside, what is printed and logged appears above the view, if its stream is looked up after the block was entered.

    Args:
        differs: job -> what tells it from the others.
        packs: jobs of each pack that is to be trained.
        console: where to; None: standard error.
    """
    global _current
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _current
        return
    before, view = _current, Sweep(differs, packs)
    display = Live(
        view,
        console=console,
        refresh_per_second=_REFRESH_PER_SECOND,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # what goes to a file must stay there
    )
    with display, shown_in(view.bars):
        _current = view
        try:
            yield view
        finally:
            _current = before


@dataclass
class _Job:
    """What is known of a job."""

    state: str = _WAITING
    done: int = 0
    steps: int = 0
    loss: float | None = None
    first: tuple[float, int] | None = None
    """Time and step of its first rows: what came before them was set-up."""
    seen: tuple[float, int] | None = None
    """Time and step of its latest rows."""

    @property
    def rate(self) -> float | None:
        """Optimizer steps per second, once that can be said."""
        if self.first is None or self.seen is None or self.seen[0] - self.first[0] < _RATE_SECONDS:
            return None
        return (self.seen[1] - self.first[1]) / (self.seen[0] - self.first[0])


class Sweep:
    """The view of a sweep; draws itself whenever it is asked to.

    Args:
        differs: job -> what tells it from the others.
        packs: jobs of each pack that is to be trained.
    """

    def __init__(self, differs: Mapping[int, str], packs: Sequence[Sequence[int]]) -> None:
        self.bars = bars()
        self._differs, self._packs = differs, packs
        self._jobs = {number: _Job() for number in differs}
        for number in set(differs) - {number for members in packs for number in members}:
            self._jobs[number].state = _TRAINED
        self._running: int | None = None
        self._began: dict[int, float] = {}
        self._took: list[float] = []
        """Seconds of each job that ended, without its pack's training."""
        self._started = time.monotonic()

    # -- being told -------------------------------------------------------------------------------------------------

    def trains(self, steps: Mapping[int, int]) -> None:
        for number, whole in steps.items():
            self._jobs[number] = _Job("train", steps=whole)

    def losses(self, job: int, rows: Sequence[Mapping[str, float]]) -> None:
        if not rows:
            return
        line, now = self._jobs[job], time.monotonic()
        line.done, line.loss = int(rows[-1]["step"]), rows[-1]["loss"]
        line.seen = (now, line.done)
        line.first = line.first or line.seen
        if line.done >= line.steps:
            line.state = _TRAINED

    def begins(self, job: int) -> None:
        self._running, self._began[job] = job, time.monotonic()

    def stage(self, name: str) -> None:
        if self._running is not None:
            self._jobs[self._running].state = name

    def ends(self, job: int, status: str) -> None:
        self._jobs[job].state = status
        if job in self._began:
            self._took.append(time.monotonic() - self._began[job])
        self._running = None

    # -- showing ----------------------------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._headline(), style="bold", no_wrap=True, overflow="ellipsis")
        rows = max(1, console.height - _OTHER_LINES - len(self.bars.tasks))
        yield self._grid(rows)
        if self.bars.tasks:
            yield self.bars

    def _headline(self) -> str:
        states = [line.state for line in self._jobs.values()]
        counts = [f"{len(states)} jobs"]
        counts += [f"{states.count(state)} {state}" for state in ("finished", "diverged", "failed") if state in states]
        pack = next((number for number, members in enumerate(self._packs, start=1) if self._is_active(members)), None)
        if pack is not None:
            counts.append(f"pack {pack} of {len(self._packs)}")
        times = f"{clock(time.monotonic() - self._started)} elapsed"
        return ", ".join(counts) + "   " + times + self._left()

    def _is_active(self, members: Sequence[int]) -> bool:
        return any(self._jobs[number].state not in (_WAITING, *_ENDS) for number in members)

    def _left(self) -> str:
        """The rest in words: of the lanes that train, and once a job has ended, of the whole sweep."""
        lanes = [line for line in self._jobs.values() if line.state == "train"]
        times = [(line.steps - line.done) / line.rate for line in lanes if line.rate]
        training = max(times, default=0.0)
        untrained = any(line.state == _WAITING for line in self._jobs.values())
        if self._took and not untrained and len(times) == len(lanes):
            waiting = sum(line.state not in _ENDS for line in self._jobs.values())
            return f", about {clock(training + waiting * sum(self._took) / len(self._took))} left"
        return f", about {clock(training)} left of this training" if training else ""

    def _grid(self, most: int) -> Table:
        """A row per job: those that something happens to, then the others, as many as there is room for."""
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column("job", justify="right")
        grid.add_column("what differs", no_wrap=True, overflow="ellipsis")
        for heading in ("stage", "step", "loss", "steps/s", "left"):
            grid.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
        quiet = (_WAITING, _TRAINED, *_ENDS)
        order = sorted(self._jobs, key=lambda number: (self._jobs[number].state in quiet, number))
        shown = sorted(order[: most if len(order) <= most else most - 1])
        for number in shown:
            line = self._jobs[number]
            rate = line.rate if line.state == "train" else None
            grid.add_row(
                str(number),
                Text(self._differs[number]),
                Text(line.state, style=_STYLES.get(line.state, "")),
                f"{line.done}/{line.steps}" if line.steps else "",
                "" if line.loss is None else f"{line.loss:.3g}",
                "" if not rate else f"{rate:.2f}",
                "" if not rate else clock((line.steps - line.done) / rate),
            )
        if len(shown) < len(order):
            grid.add_row("", Text(f"and {len(order) - len(shown)} more"))
        return grid


_ENDS = ("finished", "diverged", "failed")
_STYLES = {"finished": "green", "diverged": "red", "failed": "red", _WAITING: "dim", _TRAINED: "dim"}
