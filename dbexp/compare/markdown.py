"""results.md: the sentences and the tables of a comparison, ready to paste."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from dbexp.compare.benchmark import BENCHMARK_LEGEND
from dbexp.compare.comparison import MEASURES, Comparison
from dbexp.compare.costs import LEGEND, TITLES, are_known, words
from dbexp.compare.numbers import DASH, display, interval, spread
from dbexp.compare.statements import statements
from dbexp.core.errors import first_line
from dbexp.evaluate.columns import RECOMMEND, heading
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.objective import with_score
from dbexp.runs import race

MARKDOWN = "results.md"


def markdown(comparison: Comparison) -> str:
    """The whole file."""
    parts = [f"# {_escaped(' and '.join(sweep.name for sweep in comparison.sweeps.values()))}"]
    if comparison.labels:
        parts.append(f"> {_escaped('; '.join(comparison.labels))}")
    points = [
        f"- **{_escaped(statement.subject)}:** {_escaped(statement.sentence.removeprefix(f'{statement.subject}: '))}"
        for statement in statements(comparison)
    ]
    if points:
        parts.append("\n".join(points))
    parts.append(_runs(comparison))
    if any(len(standing.entries) > 1 for standing in comparison.standings):
        parts += ["Mean ± standard deviation over seeds:", _standings(comparison)]
    if comparison.benchmark:
        parts += ["Benchmark: " + BENCHMARK_LEGEND, _benchmark(comparison)]
    if are_known(comparison.finished):
        parts += [f"What it cost, mean over runs. {LEGEND}", _costs(comparison)]
    races = [record["passes"] for sweep in comparison.sweeps.values() for record in race.read(sweep)]
    if cost := race.cost(races):
        parts.append(f"Halving: {cost}.")
    parts += [_escaped(note) for note in comparison.notes]
    failed = [entry for entry in comparison.entries if entry.run.report is None]
    if failed:
        lines = [f"- {entry.title}: {entry.run.status}, {first_line(entry.run.error)}" for entry in failed]
        parts.append("Jobs without a result:\n\n" + "\n".join(_escaped(line) for line in lines))
    percent = f"{100 * comparison.confidence:g} %"
    parts.append(
        f"Brackets are {percent} intervals: of a difference, for what its sentence says (see docs/intervals.md); in "
        "the table of runs, for other prompts alone. Bold is the best of a column; ↑ higher is better, ↓ lower."
    )
    return "\n\n".join(parts) + "\n"


def _runs(comparison: Comparison) -> str:
    best, columns = comparison.best, _columns(comparison)
    lines = []
    for entry in comparison.finished:
        assert entry.run.report is not None
        settings = [_escaped(entry.settings.get(factor.name, DASH)) for factor in comparison.factors]
        lines.append([entry.id, *settings, *_cells(with_score(entry.run.report.rows), columns, best)])
    for reference in comparison.references:
        settings = [""] * len(comparison.factors)
        lines.append([f"*{_escaped(reference.title)}*", *settings, *_cells(reference.columns, columns, {})])
    return _grid(["run", *(factor.title for factor in comparison.factors), *map(heading, columns)], lines)


def _columns(comparison: Comparison) -> tuple[str, ...]:
    """The paper's, and the recommendation where there is one."""
    return (*MEASURES, RECOMMEND) if comparison.recommendation.first else MEASURES


def _standings(comparison: Comparison) -> str:
    lines, columns = [], _columns(comparison)
    for standing in comparison.standings:
        moments = [(column, standing.moments.get(column)) for column in columns]
        values = [
            f"{display(column, of.mean)} {spread(column, of.deviation)}" if of else DASH for column, of in moments
        ]
        lines.append([_escaped(standing.title), str(len(standing.entries)), *map(str.strip, values)])
    return _grid(["setting", "seeds", *map(heading, columns)], lines)


def _benchmark(comparison: Comparison) -> str:
    names = [column for column in MEASURES if any(column in row.columns for row in comparison.benchmark)]
    lines = []
    for row in comparison.benchmark:
        title, cells = _escaped(row.title), _cells(row.columns, names, {})
        title = f"{title} (published)" if row.kind == "published" else title
        about = _escaped(row.subject or row.source or row.scope)
        lines.append([f"*{title}*" if row.kind in ("reference", "published") else title, about, *cells])
    return _grid(["method", "subject, source or scope", *map(heading, names)], lines)


def _costs(comparison: Comparison) -> str:
    costs = [(standing.title, [entry.run.costs for entry in standing.entries]) for standing in comparison.standings]
    return _grid(["setting", *TITLES], [[_escaped(title), *words(of)] for title, of in costs])


def _cells(row: Mapping[str, Estimate], columns: Sequence[str], best: Mapping[str, str | None]) -> list[str]:
    """Some columns of a row."""
    cells = []
    for column in columns:
        estimate = row.get(column, Estimate.missing(""))
        text = display(column, estimate.value)
        text = f"**{text}**" if text == best.get(column) else text
        cells.append(f"{text} {interval(column, estimate.low, estimate.high)}".strip())
    return cells


def _grid(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _escaped(text: str) -> str:
    """Text that neither markdown nor the HTML within it takes for markup."""
    safe = html.escape(" ".join(text.split()), quote=False)
    for character in "\\|`*[]":
        safe = safe.replace(character, f"\\{character}")
    return safe.replace("_", "\\_")
