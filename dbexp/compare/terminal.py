"""What a comparison says, on a terminal, in a log file, in a pipe: the first screen of the page as text."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbexp.compare.changes import Change
from dbexp.compare.comparison import MEASURES, Comparison
from dbexp.compare.statements import statements
from dbexp.compare.table import print_grid, print_plain
from dbexp.evaluate.columns import COLUMNS, heading

_STYLES = {"better": "green", "worse": "red", "same": "dim", "once": "dim", "depends": "italic"}
_MARKS = {"better": " *", "worse": " *"}
"""Verdict -> what stands behind a number, for readers without colours."""


def show_statements(comparison: Comparison, console: Console | None = None) -> None:
    """Print the best setting, what each parameter changes, and what nobody can tell.

    Args:
        comparison: of one or more sweeps.
        console: where to; None: standard output.
    """
    console = console or Console()
    remarks = []
    grid = Table()
    for title in ("", *map(heading, MEASURES)):
        grid.add_column(title, overflow="fold")
    bases = []
    for statement in statements(comparison):
        if statement.verdict == "best":
            print_plain(f"\n{statement.sentence}\n", console)
        elif not any(change.interval for change in statement.changes):
            remarks.append(statement.sentence)
        else:
            grid.add_row(Text(statement.subject, style="bold"), *_cells(statement.changes, console))
            for where, at in statement.cases:
                grid.add_row(f"  at {where}", *_cells(at, console))
            bases.append(f"{statement.subject}: {statement.verdict} ({statement.basis})")
    if grid.rows:
        console.print()
        percent = f"{100 * comparison.confidence:g} %"
        print_grid(f"what parameters change, with {percent} intervals; * leaves out zero", grid, console)
        print_plain("\n" + "\n".join(bases) + "\n", console)
    if remarks:
        print_plain("\n" + "\n".join(remarks) + "\n", console)
    if comparison.notes:
        print_plain("\n" + "\n".join(comparison.notes) + "\n", console)


def _cells(changes: tuple[Change, ...], console: Console) -> list[Text]:
    """One per measure: value and interval, below one another on a terminal, which is narrow."""
    by_title = {change.column: change for change in changes}
    cells = []
    for column in MEASURES:
        cell, change = Text(), by_title.get(COLUMNS[column].title)
        if change is not None:
            separator = "\n" if console.is_terminal else " "
            cell.append(change.value + _MARKS.get(change.verdict, ""), style=_STYLES.get(change.verdict, ""))
            cell.append(f"{separator}{change.interval}" if change.interval else "", style="dim")
        cells.append(cell)
    return cells
