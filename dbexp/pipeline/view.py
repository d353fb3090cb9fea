"""One view of a whole sweep on a terminal: its runs, the lanes that train, the stage at work, and the time left.

Elsewhere (a log file, a Slurm job) nothing is redrawn: there the plain lines of `dbexp.core.progress` and of the log
tell the same. What has news asks for `current()`, which is a view that shows nothing unless a sweep has opened one, so
nothing needs to know whether anybody watches.
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
"""Of the terminal's height, kept free beside the rows of runs."""


class View(Protocol):
    """Hears how a sweep goes on. Runs are called by their number."""

    def trains(self, steps: Mapping[int, int]) -> None:
        """These runs train together from now on; number -> steps of its whole training."""

    def losses(self, number: int, rows: Sequence[Mapping[str, float]]) -> None:
        """A run's training has come further; rows of its history, with step and loss."""

    def begins(self, number: int) -> None:
        """A run goes through its stages from now on."""

    def stage(self, name: str) -> None:
        """The run that began last has come to a stage."""

    def ends(self, number: int, status: str) -> None:
        """A run has ended: finished, diverged, failed."""


class NullView:
    """The view when nobody watches."""

    def trains(self, steps: Mapping[int, int]) -> None: ...

    def losses(self, number: int, rows: Sequence[Mapping[str, float]]) -> None: ...

    def begins(self, number: int) -> None: ...

    def stage(self, name: str) -> None: ...

    def ends(self, number: int, status: str) -> None: ...


_current: View = NullView()


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
        differs: number of a run -> what tells it from the others.
        packs: runs of each pack that is to be trained.
        console: where to; None: standard error.
    """
    global _current
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _current
        return
    before, view = _current, SweepView(differs, packs)
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
class _Progress:
    """How far a run has come."""

    state: str = _WAITING
    done: int = 0
    steps: int = 0
    loss: float | None = None
    first: tuple[float, int] | None = None
    """Time and step of its first rows: what came before them was set-up."""
    latest: tuple[float, int] | None = None
    """Time and step of its latest rows."""

    @property
    def rate(self) -> float | None:
        """Optimizer steps per second, once that can be said."""
        if self.first is None or self.latest is None or self.latest[0] - self.first[0] < _RATE_SECONDS:
            return None
        return (self.latest[1] - self.first[1]) / (self.latest[0] - self.first[0])


class SweepView:
    """The view of a sweep; draws itself whenever it is asked to.

    Args:
        differs: number of a run -> what tells it from the others.
        packs: runs of each pack that is to be trained.
    """

    def __init__(self, differs: Mapping[int, str], packs: Sequence[Sequence[int]]) -> None:
        self.bars = bars()
        self._differs, self._packs = differs, packs
        self._runs = {number: _Progress() for number in differs}
        for number in set(differs) - {number for members in packs for number in members}:
            self._runs[number].state = _TRAINED
        self._active: int | None = None
        self._start_times: dict[int, float] = {}
        self._durations: list[float] = []
        """Seconds of each run that ended, without its pack's training."""
        self._started = time.monotonic()

    # -- what happens -----------------------------------------------------------------------------------------------

    def trains(self, steps: Mapping[int, int]) -> None:
        for number, whole in steps.items():
            self._runs[number] = _Progress("train", steps=whole)

    def losses(self, number: int, rows: Sequence[Mapping[str, float]]) -> None:
        if not rows:
            return
        run = self._runs[number]
        run.done, run.loss = int(rows[-1]["step"]), rows[-1]["loss"]
        run.latest = (time.monotonic(), run.done)
        run.first = run.first or run.latest
        if run.done >= run.steps:
            run.state = _TRAINED

    def begins(self, number: int) -> None:
        self._active, self._start_times[number] = number, time.monotonic()

    def stage(self, name: str) -> None:
        if self._active is not None:
            self._runs[self._active].state = name

    def ends(self, number: int, status: str) -> None:
        self._runs[number].state = status
        if number in self._start_times:
            self._durations.append(time.monotonic() - self._start_times[number])
        self._active = None

    # -- showing ----------------------------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._headline(), style="bold", no_wrap=True, overflow="ellipsis")
        rows = max(1, console.height - _OTHER_LINES - len(self.bars.tasks))
        yield self._grid(rows)
        if self.bars.tasks:
            yield self.bars

    def _headline(self) -> str:
        states = [run.state for run in self._runs.values()]
        counts = [f"{len(states)} jobs"]
        counts += [f"{states.count(state)} {state}" for state in ("finished", "diverged", "failed") if state in states]
        pack = next((number for number, members in enumerate(self._packs, start=1) if self._is_active(members)), None)
        if pack is not None:
            counts.append(f"pack {pack} of {len(self._packs)}")
        times = f"{clock(time.monotonic() - self._started)} elapsed"
        return ", ".join(counts) + "   " + times + self._left()

    def _is_active(self, members: Sequence[int]) -> bool:
        return any(self._runs[number].state not in (_WAITING, *_ENDS) for number in members)

    def _left(self) -> str:
        """The rest in words: of the lanes that train, and once a run has ended, of the whole sweep."""
        lanes = [run for run in self._runs.values() if run.state == "train"]
        times = [(run.steps - run.done) / run.rate for run in lanes if run.rate]
        training = max(times, default=0.0)
        untrained = any(run.state == _WAITING for run in self._runs.values())
        if self._durations and not untrained and len(times) == len(lanes):
            waiting = sum(run.state not in _ENDS for run in self._runs.values())
            return f", about {clock(training + waiting * sum(self._durations) / len(self._durations))} left"
        return f", about {clock(training)} left of this training" if training else ""

    def _grid(self, most: int) -> Table:
        """A row per run: those that something happens to, then the others, as many as there is room for."""
        grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        grid.add_column("job", justify="right")
        grid.add_column("what differs", no_wrap=True, overflow="ellipsis")
        for heading in ("stage", "step", "loss", "steps/s", "left"):
            grid.add_column(heading, justify="left" if heading == "stage" else "right", no_wrap=True)
        quiet = (_WAITING, _TRAINED, *_ENDS)
        order = sorted(self._runs, key=lambda number: (self._runs[number].state in quiet, number))
        visible = sorted(order[: most if len(order) <= most else most - 1])
        for number in visible:
            run = self._runs[number]
            rate = run.rate if run.state == "train" else None
            grid.add_row(
                str(number),
                Text(self._differs[number]),
                Text(run.state, style=_STYLES.get(run.state, "")),
                f"{run.done}/{run.steps}" if run.steps else "",
                "" if run.loss is None else f"{run.loss:.3g}",
                "" if not rate else f"{rate:.2f}",
                "" if not rate else clock((run.steps - run.done) / rate),
            )
        if len(visible) < len(order):
            grid.add_row("", Text(f"and {len(order) - len(visible)} more"))
        return grid


_ENDS = ("finished", "diverged", "failed")
_STYLES = {"finished": "green", "diverged": "red", "failed": "red", _WAITING: "dim", _TRAINED: "dim"}
