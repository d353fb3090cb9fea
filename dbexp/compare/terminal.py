"""What a comparison says, on a terminal, in a log file, in a pipe: the first screen of the page as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbexp.compare.benchmark import BENCHMARK_LEGEND
from dbexp.compare.changes import Change
from dbexp.compare.comparison import MEASURES, Comparison
from dbexp.compare.costs import LEGEND, TITLES, are_known, words
from dbexp.compare.numbers import display, interval
from dbexp.compare.statements import LEADS, Statement, statements
from dbexp.compare.table import print_grid, print_plain
from dbexp.evaluate.columns import column_of, heading
from dbexp.evaluate.functional import Estimate

_STYLES = {"better": "green", "worse": "red", "same": "dim", "once": "dim", "depends": "italic"}
_MARKS = {"better": " *", "worse": " *"}
"""Verdict -> what stands behind a number, for readers without colours."""
_GRID_WIDTH = 110  # a narrower terminal has no room for five columns of intervals


def show_statements(comparison: Comparison, console: Console | None = None) -> None:
    """Print the best setting, what each parameter changes, and what nobody can tell.

    Args:
        comparison: of one or more sweeps.
        console: where to; None: standard output.
    """
    console = console or Console()
    remarks: list[str] = []
    effects: list[Statement] = []
    for statement in statements(comparison):
        if statement.verdict in LEADS:
            print_plain(f"\n{statement.sentence}\n", console)
        elif any(change.interval for change in statement.changes):
            effects.append(statement)
        else:
            remarks.append(statement.sentence)
    if effects:
        console.print()
        title = f"what parameters change, with {100 * comparison.confidence:g} % intervals; * leaves out zero"
        if console.is_terminal and console.width < _GRID_WIDTH:
            _show_lists(title, effects, console)
        else:
            print_grid(title, _grid(effects, "\n" if console.is_terminal else " "), console)
        bases = [f"{effect.subject}: {effect.verdict} ({effect.basis})" for effect in effects]
        print_plain("\n" + "\n".join(bases) + "\n", console)
    _show_benchmark(comparison, console)
    _show_costs(comparison, console)
    for lines in (remarks, comparison.notes):
        if lines:
            print_plain("\n" + "\n".join(lines) + "\n", console)


def _show_benchmark(comparison: Comparison, console: Console) -> None:
    """Methods, what they are measured against, and what others published; subjects are in the files."""
    rows = [row for row in comparison.benchmark if row.kind != "subject"]
    if not rows:
        return
    names = [column for column in MEASURES if any(column in row.columns for row in rows)]
    grid = Table()
    for title in ("", *map(heading, names)):
        grid.add_column(title, overflow="fold")
    for row in rows:
        cells = []
        for name in names:
            estimate = row.columns.get(name, Estimate.missing(""))
            cells.append(f"{display(name, estimate.value)} {interval(name, estimate.low, estimate.high)}".strip())
        grid.add_row(Text(f"{row.title}, published" if row.kind == "published" else row.title), *cells)
    console.print()
    print_grid("benchmark", grid, console)
    sources = dict.fromkeys(row.source or row.scope for row in rows if row.source or row.scope)
    print_plain("\n" + "\n".join((f"benchmark: {BENCHMARK_LEGEND}", *sources)) + "\n", console)


def _show_costs(comparison: Comparison, console: Console) -> None:
    """A row per setting."""
    if not are_known(comparison.finished):
        return
    grid = Table()
    for title in ("", *TITLES):
        grid.add_column(title, overflow="fold", justify="right" if title else "left")
    for standing in comparison.standings:
        grid.add_row(Text(standing.title), *words([entry.run.costs for entry in standing.entries]))
    console.print()
    print_grid("what it cost, mean over runs", grid, console)
    print_plain(f"\n{LEGEND}\n", console)


def _show_lists(title: str, effects: Sequence[Statement], console: Console) -> None:
    """A line per number, the columns of a step below its name."""
    console.print(Text(title, style="bold"))
    for effect in effects:
        console.print(Text(f"\n{effect.subject}", style="bold"))
        for where, changes in _rows(effect):
            for change in changes:
                line = Text(f"  {change.column:8}").append(f"at {where}  " if where else "")
                console.print(line.append(_cell(change, " ")))


def _grid(effects: Sequence[Statement], separator: str) -> Table:
    """A row per step, a column per measure."""
    grid = Table()
    for title in ("", *map(heading, MEASURES)):
        grid.add_column(title, overflow="fold")
    for effect in effects:
        for where, changes in _rows(effect):
            by_title = {change.column: _cell(change, separator) for change in changes}
            name = Text(f"  at {where}") if where else Text(effect.subject, style="bold")
            grid.add_row(name, *(by_title.get(column_of(column).title, Text()) for column in MEASURES))
    return grid


def _rows(effect: Statement) -> Iterator[tuple[str, Sequence[Change]]]:
    """The step by itself, which has no other name, then where it differs."""
    yield "", effect.changes
    yield from effect.cases


def _cell(change: Change, separator: str) -> Text:
    text = Text(change.value + _MARKS.get(change.verdict, ""), style=_STYLES.get(change.verdict, ""))
    return text.append(f"{separator}{change.interval}".rstrip(), style="dim")
