"""The table of a sweep as it is printed: a line per job while it runs, all of them at its end."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbexp.compare import table
from dbexp.core.errors import first_line
from dbexp.evaluate.columns import COLUMNS, PAPER, heading
from dbexp.runs.names import is_seed, titles, what_differs
from dbexp.runs.record import Group, Run, first_of, over_seeds, ranked


def line(run: Run) -> str:
    """The paper's columns of a run in one line, or why there are none."""
    if run.report is None:
        return f"{run.status}: {first_line(run.error)}"
    row = run.report.rows["run"]
    return "  ".join(f"{COLUMNS[column].title} {_short(row[column].value)}" for column in PAPER if column in row)


def show(runs: Sequence[Run], objective: str, console: Console | None = None) -> None:
    """Print the table of the finished runs, best first; where only seeds differ, their mean and deviation below it.

    Args:
        runs: of one sweep.
        objective: the column that ranks; of several, comma separated, the first.
        console: where to; None: standard output.
    """
    finished = ranked(runs, first_of(objective))
    if not finished:
        return
    console = console or Console()
    named = titles({run.folder: run.overrides for run in finished})
    table.show([(named[run.folder], run.report) for run in finished if run.report], console)
    groups = over_seeds(finished)
    if any(len(group.runs) > 1 for group in groups):
        console.print()
        print_grid("mean ± standard deviation over seeds", _seeds_table(groups, first_of(objective)), console)


def print_grid(title: str, grid: Table, console: Console) -> None:
    """Print a titled table: with rules on a terminal, as bare lines that are never folded elsewhere."""
    grid.pad_edge, grid.show_edge, grid.padding = False, False, (0, 2, 0, 0)
    grid.box = box.SIMPLE_HEAD if console.is_terminal else None
    page = (Text(title, style="bold"), Text(), grid)
    if console.is_terminal:
        console.print(*page, sep="\n")
        return
    buffer = io.StringIO()
    Console(file=buffer, width=10_000, color_system=None, legacy_windows=False).print(*page, sep="\n")
    written = "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())
    console.file.write(written.encode(console.encoding, "replace").decode(console.encoding))


def _seeds_table(groups: Sequence[Group], objective: str) -> Table:
    """A row per group: mean and sample standard deviation over its seeds."""
    sign = -1 if COLUMNS[objective].better == "lower" else 1

    def rank(group: Group) -> float:
        value = group.mean.get(objective, math.nan)
        return math.inf if math.isnan(value) else -sign * value

    told = what_differs(
        [[word for word in group.runs[0].overrides if not is_seed(word.partition("=")[0])] for group in groups]
    )
    names = {group.runs[0].folder: " ".join(words) or "all runs" for group, words in zip(groups, told, strict=True)}
    grid = Table()
    for title in ("", "seeds", *map(heading, PAPER)):
        grid.add_column(title, overflow="fold")
    for group in sorted(groups, key=rank):
        cells = [_spread(group, column) for column in PAPER]
        grid.add_row(Text(names[group.runs[0].folder]), str(len(group.runs)), *cells)
    return grid


def _spread(group: Group, column: str) -> str:
    mean, deviation = (moment.get(column, math.nan) for moment in (group.mean, group.deviation))
    return _short(mean) if math.isnan(deviation) else f"{_short(mean)} ± {_short(deviation)}"


def _short(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"
