"""One view of a whole sweep on a terminal: its runs, the lanes that train, the stage at work, and the time left.

Elsewhere (a log file, a Slurm job) nothing is redrawn: there the plain lines of `dbexp.core.progress` and of the log
tell the same. What has news asks for `current()`, which is a view that shows nothing unless a sweep has opened one, so
nothing needs to know whether anybody watches.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

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
_HEADINGS = ("job", "stage", "step", "loss", "steps/s", "left")
_GAP, _LEAST = 2, 4
"""Characters between columns, and of a parameter's values where there is no room for all."""


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
    differs: Mapping[int, Sequence[str]],
    packs: Sequence[Sequence[int]],
    steps: Mapping[int, int],
    console: Console | None = None,
) -> Iterator[View]:
    """Show a sweep while the block runs, if there is a terminal to show it on.

    Inside, what is printed and logged appears above the view, if its stream is looked up after the block was entered.

    Args:
        differs: number of a run -> what tells it from the others, as words `name=value`.
        packs: runs of each pack that is to be trained.
        steps: number of a run -> optimizer steps of its training.
        console: where to; None: standard error.
    """
    global _current
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _current
        return
    before, view = _current, SweepView(differs, packs, steps)
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
        differs: number of a run -> what tells it from the others, as words `name=value`.
        packs: runs of each pack that is to be trained.
        steps: number of a run -> optimizer steps of its training.
    """

    def __init__(
        self, differs: Mapping[int, Sequence[str]], packs: Sequence[Sequence[int]], steps: Mapping[int, int]
    ) -> None:
        self.bars = bars()
        self._differs = {number: dict(word.partition("=")[::2] for word in words) for number, words in differs.items()}
        self._packs = packs
        self._runs = {number: _Progress(steps=steps.get(number, 0)) for number in differs}
        for number in set(differs) - {number for members in packs for number in members}:
            self._runs[number].state = _TRAINED
        self._active: int | None = None
        self._begun = 0.0
        self._durations: list[float] = []
        """Seconds of each run that ended, without its pack's training."""
        self._training = _Throughput()
        self._started = time.monotonic()

    # -- what happens -----------------------------------------------------------------------------------------------

    def trains(self, steps: Mapping[int, int]) -> None:
        self._training.begin()
        for number, whole in steps.items():
            self._runs[number] = _Progress("train", steps=whole)

    def losses(self, number: int, rows: Sequence[Mapping[str, float]]) -> None:
        if not rows:
            return
        run = self._runs[number]
        # a lane's first rows may be those of an interrupted training that it goes on from
        self._training.add(int(rows[-1]["step"]) - run.done if run.first else 0)
        run.done, run.loss = int(rows[-1]["step"]), rows[-1]["loss"]
        run.latest = (time.monotonic(), run.done)
        run.first = run.first or run.latest
        if run.done >= run.steps:
            run.state = _TRAINED

    def begins(self, number: int) -> None:
        self._active, self._begun = number, time.monotonic()

    def stage(self, name: str) -> None:
        if self._active is not None:
            self._runs[self._active].state = name

    def ends(self, number: int, status: str) -> None:
        self._runs[number].state = status
        if number == self._active:
            self._durations.append(time.monotonic() - self._begun)
        self._active = None

    # -- showing ----------------------------------------------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._headline(), style="bold", no_wrap=True, overflow="ellipsis")
        rows = max(1, console.height - _OTHER_LINES - len(self.bars.tasks))
        yield self._grid(rows, options.max_width)
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
        """The rest in words: of the whole sweep where that is known, else of the training that goes on."""
        steps = sum(run.steps - run.done for run in self._runs.values() if run.state in ("train", _WAITING))
        training = self._training.seconds(steps)
        stages = self._stages_left()
        if training is not None and stages is not None:
            return f", about {clock(training + stages)} left"
        lanes = [run for run in self._runs.values() if run.state == "train" and run.rate]
        now = max(((run.steps - run.done) / run.rate for run in lanes if run.rate), default=0.0)
        if now:
            return f", about {clock(now)} left of this training"
        bar = max((task.time_remaining or 0.0 for task in self.bars.tasks), default=0.0)
        return f", about {clock(bar)} left of this stage" if bar else ""

    def _stages_left(self) -> float | None:
        """Seconds that sampling and the rest of all runs still take; None before a run has shown it.

        The median: the first run also loads networks and draws what all share, and one that was found in the store
        takes no time.
        """
        if not self._durations:
            return None
        usual = statistics.median(self._durations)
        rest = sum(run.state not in _ENDS for run in self._runs.values())
        if self._active is None:
            return rest * usual
        # a bar knows better than the median how far its stage is
        bar = max((task.time_remaining or 0.0 for task in self.bars.tasks), default=0.0)
        return (rest - 1) * usual + max(usual - (time.monotonic() - self._begun), bar)

    def _grid(self, most: int, width: int) -> Table:
        """A row per run: those that something happens to, then the others, as many as there is room for.

        Args:
            most: rows.
            width: characters; where they do not suffice, values of parameters are shortened, numbers and states never.
        """
        quiet = (_WAITING, _TRAINED, *_ENDS)
        order = sorted(self._runs, key=lambda number: (self._runs[number].state in quiet, number))
        visible = sorted(order[: most if len(order) <= most else most - 1])
        cells = {number: self._cells(number) for number in visible}
        names = list(dict.fromkeys(name for number in visible for name in self._differs[number]))
        widths = [max(len(heading), *(len(row[at]) for row in cells.values())) for at, heading in enumerate(_HEADINGS)]
        room = width - sum(widths) - _GAP * (len(_HEADINGS) + len(names))
        values = {name: [self._differs[number].get(name, "") for number in visible] for name in names}
        needs = {name: max(len(name), *map(len, texts)) for name, texts in values.items()}
        grid = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0))
        grid.add_column(_HEADINGS[0], justify="right", no_wrap=True, min_width=widths[0])
        for name, share in _shares(needs, room).items():
            grid.add_column(
                Text(name, no_wrap=True, overflow="ellipsis"), no_wrap=True, overflow="ellipsis", width=share
            )
        for heading, least in zip(_HEADINGS[1:], widths[1:], strict=True):
            justify: Literal["left", "right"] = "left" if heading == "stage" else "right"
            grid.add_column(heading, justify=justify, no_wrap=True, min_width=least)
        for number in visible:
            job, state, *numbers = cells[number]
            differs = [Text(self._differs[number].get(name, "")) for name in names]
            grid.add_row(job, *differs, Text(state, style=_STYLES.get(state, "")), *numbers)
        if len(visible) < len(order):
            grid.add_row("", *["" for _ in names], f"and {len(order) - len(visible)} more")
        return grid

    def _cells(self, number: int) -> tuple[str, ...]:
        """What `_HEADINGS` name, of one run."""
        run = self._runs[number]
        rate = run.rate if run.state == "train" else None
        return (
            str(number),
            run.state,
            f"{run.done}/{run.steps}" if run.steps and run.state != _WAITING else "",
            "" if run.loss is None else f"{run.loss:.3g}",
            "" if not rate else f"{rate:.2f}",
            "" if not rate else clock((run.steps - run.done) / rate),
        )


class _Throughput:
    """Steps of all lanes together per second, over all packs so far, without what a pack does before its first step."""

    def __init__(self) -> None:
        self._seconds, self._steps, self._latest = 0.0, 0, math.nan

    def begin(self) -> None:
        """Another pack trains from now on."""
        self._latest = math.nan

    def add(self, steps: int) -> None:
        """A lane has come further."""
        now = time.monotonic()
        if not math.isnan(self._latest):
            self._seconds += now - self._latest
            self._steps += steps
        self._latest = now

    def seconds(self, steps: int) -> float | None:
        """How long some steps take; None while that cannot be told."""
        if steps == 0:
            return 0.0
        return steps * self._seconds / self._steps if self._steps and self._seconds >= _RATE_SECONDS else None


def _shares(needs: Mapping[str, int], room: int) -> dict[str, int]:
    """Widths of columns that together take no more than `room`, or `_LEAST` each: the widest give way first."""
    shares = dict(needs)
    while sum(shares.values()) > room:
        widest = max(shares, key=lambda name: shares[name], default=None)
        if widest is None or shares[widest] <= _LEAST:
            break
        shares[widest] -= 1
    return shares


_ENDS = ("finished", "diverged", "failed")
_STYLES = {"finished": "green", "diverged": "red", "failed": "red", _WAITING: "dim", _TRAINED: "dim"}
