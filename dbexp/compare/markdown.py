"""results.md: the sentences and the tables of a comparison, ready to paste."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from dbexp.compare.comparison import MEASURES, Comparison
from dbexp.compare.numbers import DASH, interval, written
from dbexp.compare.statements import statements
from dbexp.compare.tables import Cell, best_cells, row_cells
from dbexp.core.errors import first_line
from dbexp.evaluate.columns import heading

MARKDOWN = "results.md"


def markdown(comparison: Comparison) -> str:
    """The whole file."""
    parts = [f"# {_escaped(' and '.join(sweep.name for sweep in comparison.sweeps.values()))}"]
    if comparison.labels:
        parts.append(f"> {_escaped('; '.join(comparison.labels))}")
    said = statements(comparison)
    if said:
        parts.append(
            "\n".join(f"- **{_escaped(one.subject)}:** {_escaped(_rest(one.sentence, one.subject))}" for one in said)
        )
    parts.append(_runs(comparison))
    if any(len(standing.entries) > 1 for standing in comparison.standings):
        parts += ["Mean ± standard deviation over seeds:", _standings(comparison)]
    parts += [_escaped(note) for note in comparison.notes]
    failed = [entry for entry in comparison.entries if entry.run.report is None]
    if failed:
        lines = [f"- {entry.title}: {entry.run.status}, {first_line(entry.run.error)}" for entry in failed]
        parts.append("Jobs without a result:\n\n" + "\n".join(_escaped(line) for line in lines))
    parts.append("Brackets are 95 % bootstrap intervals; bold is the best of a column; ↑ higher is better, ↓ lower.")
    return "\n\n".join(parts) + "\n"


def _rest(sentence: str, subject: str) -> str:
    return sentence.removeprefix(f"{subject}: ")


def _runs(comparison: Comparison) -> str:
    headings = ["run", *(factor.title for factor in comparison.factors), *map(heading, MEASURES)]
    best = best_cells(comparison)
    lines = []
    for entry in comparison.finished:
        assert entry.run.report is not None
        cells = row_cells(entry.run.report.rows["run"], MEASURES)
        settings = [_escaped(entry.settings.get(factor.name, DASH)) for factor in comparison.factors]
        lines.append([entry.id, *settings, *(_cell(cell, cell.exact in best.get(cell.column, ())) for cell in cells)])
    for reference in comparison.references:
        cells = row_cells(reference.columns, MEASURES)
        lines.append([f"*{_escaped(reference.title)}*", *("" for _ in comparison.factors), *map(_cell, cells)])
    return _grid(headings, lines)


def _standings(comparison: Comparison) -> str:
    lines = []
    for standing in comparison.standings:
        values = []
        for column in MEASURES:
            moments = standing.moments.get(column)
            text = DASH if moments is None else written(column, moments.mean)
            spread = "" if moments is None else written(column, moments.deviation)
            values.append(text if spread in ("", DASH) else f"{text} ± {spread}")
        lines.append([_escaped(standing.title), str(len(standing.entries)), *values])
    return _grid(["setting", "seeds", *map(heading, MEASURES)], lines)


def _cell(cell: Cell, is_best: bool = False) -> str:
    text = f"**{cell.text}**" if is_best else cell.text
    ends = interval(cell.column, cell.low, cell.high)
    return f"{text} {ends}".strip()


def _grid(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _escaped(text: str) -> str:
    """Text that neither markdown nor the HTML within it takes for markup."""
    safe = html.escape(" ".join(text.split()), quote=False)
    for character in "\\|`*[]":
        safe = safe.replace(character, f"\\{character}")
    return safe.replace("_", "\\_")
