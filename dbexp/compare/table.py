"""The metric table as people read it: on a terminal, in a log file, in a pipe.

Rows are the runs, then what they are measured against: the base model under the same prompts and seeds, and the real
images among themselves. Columns are the five of the DreamBooth paper first, an arrow at each for the better direction.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from dbexp.core.errors import listed
from dbexp.evaluate.columns import COLUMNS, PAPER, REFERENCES, heading
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.report import Report

_SHOWN_AS_ROWS = ("pres_base", "dino_real", "clip_i_real")  # the same numbers stand in the rows of REFERENCES
_DASH = "–"
_ASCII = str.maketrans({"↑": "^", "↓": "v", _DASH: "-", "…": "~"})
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
        return
    written = text(reports)
    console.file.write(written if console.encoding.startswith("utf") else written.translate(_ASCII))


def text(reports: Sequence[tuple[str, Report]]) -> str:
    """The table without colours and rules, one line per row however long.

    Args:
        reports: (name of the run, its report), in the order of the rows; at least one.
    """
    buffer = io.StringIO()
    plain = Console(file=buffer, width=10_000, color_system=None, legacy_windows=False)
    plain.print(_page(reports, _Style(separator=" ", box=None, narrow=False)))
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"


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
    columns: dict[str, Estimate]
    is_run: bool


def _page(reports: Sequence[tuple[str, Report]], style: _Style) -> Group:
    """Title, the paper's columns with intervals, the other columns, and the reasons for dashes."""
    labels = _distinct(report.label for _, report in reports if report.label)
    rows = _runs(reports, name_labels=len(labels) > 1) + _references(reports)
    title = Text(reports[0][0] if len(reports) == 1 else f"{len(reports)} runs", style="bold")
    if labels:
        title.append(f"  ({'; '.join(labels)})", style="yellow")
    others = [
        column
        for column in COLUMNS
        if column not in (*PAPER, *_SHOWN_AS_ROWS) and any(column in row.columns for row in rows)
    ]
    parts: list[Text | Table] = [title, Text(), _grid(rows, PAPER, style, intervals=True)]
    if others:
        parts += [Text(), _grid(rows, others, style, intervals=False)]
    reasons = _reasons(rows, (*PAPER, *others))
    if reasons:
        parts += [Text(), *(Text(reason, style="dim") for reason in reasons)]
    return Group(*parts)


def _runs(reports: Sequence[tuple[str, Report]], *, name_labels: bool) -> list[_Row]:
    """One row per run; labels join the names when they differ from run to run."""
    return [
        _Row(f"{name} ({report.label})" if name_labels and report.label else name, dict(report.rows["run"]), True)
        for name, report in reports
    ]


def _references(reports: Sequence[tuple[str, Report]]) -> list[_Row]:
    """The rows that runs are measured against, once for all runs that share them."""
    rows = []
    for key, title in REFERENCES.items():
        owners: dict[str, list[str]] = {}
        columns: dict[str, dict[str, Estimate]] = {}
        for name, report in reports:
            if key in report.rows:
                content = dict(report.rows[key])
                written = repr(content)  # NaN differs from itself, its spelling does not
                owners.setdefault(written, []).append(name)
                columns[written] = content
        for written, content in columns.items():
            own = owners[written]
            others = [name for name, _ in reports if name not in own]
            whose = common_words(own, others) or listed(own, _NAMES_SHOWN)
            rows.append(_Row(title if len(columns) == 1 else f"{title} of {whose}", content, False))
    return rows


def common_words(own: Sequence[str], others: Sequence[str]) -> str:
    """Words that the names of some runs have in common, and no other run has: seed=2, say; empty if there are none."""
    theirs = {word for name in others for word in name.split()}
    return " ".join(word for word in own[0].split() if word not in theirs and all(word in one.split() for one in own))


def _grid(rows: Sequence[_Row], columns: Sequence[str], style: _Style, *, intervals: bool) -> Table:
    """A rich table of some columns; rows that have none of them are left out."""
    grid = Table(box=style.box, show_edge=False, pad_edge=False, padding=(0, 1 if style.narrow else 2, 0, 0))
    grid.add_column("", overflow="fold", min_width=min(_NAME_WIDTH, max(len(row.name) for row in rows)))
    for column in columns:
        title = heading(column)
        grid.add_column(title.replace(" ", "\n", title.count(" ") - 1) if style.narrow else title, overflow="fold")
    runs = [row for row in rows if row.is_run]
    best = {column: _best(column, runs) for column in columns} if len(runs) > 1 else {}
    for row in rows:
        if not any(column in row.columns for column in columns):
            continue
        cells = []
        for column in columns:
            estimate = row.columns.get(column)
            cell = Text() if estimate is None else _cell(column, estimate, style.separator if intervals else None)
            if estimate is not None and row.is_run and _written(column, estimate.value) == best.get(column):
                cell.stylize("bold")
            cells.append(cell)
        grid.add_row(Text(row.name, style="" if row.is_run else "italic"), *cells)
    return grid


def _cell(column: str, estimate: Estimate, separator: str | None) -> Text:
    """The value, and after the separator its interval if it has one (never for separator None)."""
    cell = Text(_written(column, estimate.value))
    if separator is not None and math.isfinite(estimate.low) and math.isfinite(estimate.high):
        low, high = _written(column, estimate.low), _written(column, estimate.high)
        cell.append(f"{separator}{low}…{high}", style="dim")
    return cell


def _written(column: str, value: float) -> str:
    """Three decimals, none for what is counted, a dash for NaN."""
    if math.isnan(value):
        return _DASH
    return f"{value:.0f}" if column.startswith("n_") else f"{value:.3f}"


def _best(column: str, runs: Sequence[_Row]) -> str | None:
    """The best value of a column as written, so that a tie on paper is a tie; None where no run beats another."""
    choose = {"higher": max, "lower": min}.get(COLUMNS[column].better)
    values = [row.columns[column].value for row in runs if column in row.columns]
    values = [value for value in values if not math.isnan(value)]
    if choose is None or len({_written(column, value) for value in values}) < 2:
        return None
    return _written(column, choose(values))


def _reasons(rows: Sequence[_Row], columns: Iterable[str]) -> list[str]:
    """Why there are dashes; columns that lack their values in the same rows for the same reason share a line."""
    lacking: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        for row in rows:
            estimate = row.columns.get(column)
            if estimate is not None and math.isnan(estimate.value):
                lacking.setdefault((column, estimate.reason or "no reason is on record"), []).append(row.name)
    lines: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (column, reason), names in lacking.items():
        lines.setdefault((reason, tuple(names)), []).append(COLUMNS[column].title)
    return [
        f"{_DASH} {', '.join(titles)}: {reason} ({listed(names, _NAMES_SHOWN)})"
        for (reason, names), titles in lines.items()
    ]


def _distinct(texts: Iterable[str]) -> list[str]:
    """Each text once, in the order of first appearance."""
    return list(dict.fromkeys(texts))
