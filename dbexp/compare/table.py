"""The metric table on a terminal, in a log file, in a pipe: of a run, of a sweep, of a run in one line.

Rows are the runs, then what they are measured against: the base model under the same prompts and seeds, and the real
images among themselves. Columns are the five of the DreamBooth paper first, an arrow at each for the better direction.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dbexp.compare.numbers import DASH, MINUS, best, display, spread
from dbexp.compare.ranking import by_mean, over_seeds
from dbexp.compare.references import references
from dbexp.core.errors import first_line, listed
from dbexp.evaluate.columns import PAPER, RECOMMEND, column_of, heading, in_order
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.objective import with_score
from dbexp.evaluate.report import Report
from dbexp.runs.names import is_seed, titles, what_differs
from dbexp.runs.record import Run, ranked, ranking

_SHOWN_AS_ROWS = ("pres_base", "dino_real", "clip_i_real")  # the same numbers stand in the rows of the references
_PLAINER = str.maketrans({"↑": "^", "↓": "v", DASH: "-", MINUS: "-", "…": "~", "→": "->", "±": "+-", "≈": "~"})
_TERMINAL_WIDTH = 80
_NAME_WIDTH = 12  # at least this much of the first column, which leaves room for the rest
_NAMES_SHOWN = 3


def show(reports: Sequence[tuple[str, Report]], console: Console | None = None) -> None:
    """Print the table of one or more runs: with styles on a terminal of 80 characters or more, as `text` elsewhere.

    Args:
        reports: (name of the run, its report), in the order of the rows; at least one.
        console: where to; None: standard output.
    """
    console = console or Console()
    if console.is_terminal and console.width >= _TERMINAL_WIDTH:
        console.print(_page(reports, _Style(separator="\n", box=box.SIMPLE_HEAD, narrow=True)))
    else:
        print_plain(text(reports), console)


def text(reports: Sequence[tuple[str, Report]]) -> str:
    """The table without colours and rules, one line per row however long.

    Args:
        reports: (name of the run, its report), in the order of the rows; at least one.
    """
    return _lines(_page(reports, _Style(separator=" ", box=None, narrow=False)))


def show_runs(
    runs: Sequence[Run],
    objective: str,
    console: Console | None = None,
    names: Mapping[Path, str] | None = None,
    settings: Mapping[Path, str] | None = None,
) -> None:
    """Print the table of the finished runs, best first; where only seeds differ, their mean and deviation below it.

    Args:
        runs: of one sweep, or of several.
        objective: what ranks.
        console: where to; None: standard output.
        names: folder -> title of a run; None: its number, and what it overrides that others do not.
        settings: folder -> title of the run's setting; None, or where two of them are called the same: what its runs
            override that others do not.
    """
    finished = ranked(runs, objective)
    if not finished:
        return
    console = console or Console()
    names = names or titles({run.folder: run.overrides for run in finished})
    show([(names[run.folder], run.report) for run in finished if run.report], console)
    groups = by_mean(over_seeds(finished), ranking(finished, objective))
    if any(len(group.runs) > 1 for group in groups):
        overrides = [
            [word for word in group.runs[0].overrides if not is_seed(word.partition("=")[0])] for group in groups
        ]
        grid = Table()
        columns = (*PAPER, *([RECOMMEND] if any(RECOMMEND in group.mean for group in groups) else []))
        for title in ("", "seeds", *map(heading, columns)):
            grid.add_column(title, overflow="fold")
        called = [(settings or {}).get(group.runs[0].folder, "") for group in groups]
        if not all(called) or len(set(called)) < len(called):
            called = [" ".join(words) for words in what_differs(overrides)]
        for group, name in zip(groups, called, strict=True):
            moments = [(c, group.mean.get(c, math.nan), group.deviation.get(c, math.nan)) for c in columns]
            cells = [f"{display(column, mean)} {spread(column, deviation)}" for column, mean, deviation in moments]
            grid.add_row(Text(name or "all runs"), str(len(group.runs)), *map(str.strip, cells))
        console.print()
        print_grid("mean ± standard deviation over seeds", grid, console)


def line(run: Run) -> str:
    """The paper's columns of a run in one line, or why there are none."""
    if run.report is None:
        return f"{run.status}: {first_line(run.error)}"
    row = run.report.rows["run"]
    return "  ".join(
        f"{column_of(column).title} {display(column, row[column].value)}" for column in PAPER if column in row
    )


def print_grid(title: str, grid: Table, console: Console) -> None:
    """Print a titled table: with rules on a terminal, as bare lines that are never folded elsewhere."""
    grid.pad_edge, grid.show_edge, grid.padding = False, False, (0, 2, 0, 0)
    grid.box = box.SIMPLE_HEAD if console.is_terminal else None
    page = Group(Text(title, style="bold"), Text(), grid)
    if console.is_terminal:
        console.print(page)
    else:
        print_plain(_lines(page), console)


def print_plain(text: str, console: Console | None = None) -> None:
    """Write a text as it is; where the encoding lacks arrows and dashes, with plainer signs."""
    file = (console or Console()).file
    encoding = getattr(file, "encoding", None) or "utf-8"
    if not encoding.lower().startswith("utf"):
        text = text.translate(_PLAINER).encode(encoding, "replace").decode(encoding)
    file.write(text)
    file.flush()


def _lines(page: RenderableType) -> str:
    """What rich would print, without colours, as whole lines however long."""
    buffer = io.StringIO()
    Console(file=buffer, width=10_000, color_system=None, legacy_windows=False).print(page)
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())


@dataclass(frozen=True)
class _Style:
    """How a terminal and a file differ."""

    separator: str
    """Between a value and its interval."""
    box: box.Box | None
    """Rules; None: columns are kept apart by spaces alone."""
    narrow: bool
    """Break headings at spaces, and keep columns close."""


@dataclass(frozen=True)
class _Row:
    name: str
    columns: Mapping[str, Estimate]
    is_run: bool


def _page(reports: Sequence[tuple[str, Report]], style: _Style) -> Group:
    """Title, the paper's columns with intervals, the other columns, and the reasons for dashes."""
    labels = list(dict.fromkeys(report.label for _, report in reports if report.label))
    rows = [
        _Row(f"{name} ({report.label})" if len(labels) > 1 and report.label else name, with_score(report.rows), True)
        for name, report in reports
    ]
    rows += [_Row(reference.title, reference.columns, False) for reference in references(reports)]
    title = Text(reports[0][0] if len(reports) == 1 else f"{len(reports)} runs", style="bold")
    if labels:
        title.append(f"  ({'; '.join(labels)})", style="yellow")
    rest = [
        column
        for column in in_order(column for row in rows for column in row.columns)
        if column not in (*PAPER, *_SHOWN_AS_ROWS)
    ]
    parts: list[Text | Table] = [title, Text(), _grid(rows, PAPER, style, intervals=True)]
    if rest:
        parts += [Text(), _grid(rows, rest, style, intervals=False)]
    reasons = _reasons(rows, (*PAPER, *rest))
    if reasons:
        parts += [Text(), *(Text(reason, style="dim") for reason in reasons)]
    return Group(*parts)


def _grid(rows: Sequence[_Row], columns: Sequence[str], style: _Style, *, intervals: bool) -> Table:
    """A rich table of some columns; rows that have none of them are left out."""
    grid = Table(box=style.box, show_edge=False, pad_edge=False, padding=(0, 1 if style.narrow else 2, 0, 0))
    grid.add_column("", overflow="fold", min_width=min(_NAME_WIDTH, max(len(row.name) for row in rows)))
    for column in columns:
        title = heading(column)
        grid.add_column(title.replace(" ", "\n", title.count(" ") - 1) if style.narrow else title, overflow="fold")
    runs = [row.columns for row in rows if row.is_run]
    marks = {column: best(column, [run[column].value for run in runs if column in run]) for column in columns}
    for row in rows:
        if not any(column in row.columns for column in columns):
            continue
        cells = []
        for column in columns:
            estimate = row.columns.get(column)
            cell = Text() if estimate is None else _cell(column, estimate, style.separator if intervals else None)
            if estimate is not None and row.is_run and display(column, estimate.value) == marks[column]:
                cell.stylize("bold")
            cells.append(cell)
        grid.add_row(Text(row.name, style="" if row.is_run else "italic"), *cells)
    return grid


def _cell(column: str, estimate: Estimate, separator: str | None) -> Text:
    """The value, and after the separator its interval if it has one (never for separator None)."""
    cell = Text(display(column, estimate.value))
    if separator is not None and math.isfinite(estimate.low) and math.isfinite(estimate.high):
        # an ellipsis, for brackets would not fit five columns into 80 characters
        cell.append(f"{separator}{display(column, estimate.low)}…{display(column, estimate.high)}", style="dim")
    return cell


def _reasons(rows: Sequence[_Row], columns: Iterable[str]) -> list[str]:
    """Why there are dashes; columns that lack their values in the same rows for the same reason share a line."""
    gaps: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        for row in rows:
            estimate = row.columns.get(column)
            if estimate is not None and math.isnan(estimate.value):
                gaps.setdefault((column, estimate.reason or "no reason is on record"), []).append(row.name)
    lines: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (column, reason), names in gaps.items():
        lines.setdefault((reason, tuple(names)), []).append(column_of(column).title)
    return [
        f"{DASH} {', '.join(columns)}: {reason} ({listed(names, _NAMES_SHOWN)})"
        for (reason, names), columns in lines.items()
    ]
