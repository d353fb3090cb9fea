"""report.html: one page that needs nothing but itself, laid out from a comparison.

Text goes through Jinja's escaping and data through its JSON filter, so that a prompt or a path is never markup. Figures
and pictures lie in the page as data, and are drawn when the reader comes to them: the first screen is plain HTML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
import plotly.offline

from dbexp.compare.benchmark import BENCHMARK_LEGEND
from dbexp.compare.changes import SMALL
from dbexp.compare.comparison import MEASURES, Comparison
from dbexp.compare.costs import LEGEND, TITLES, are_known, words
from dbexp.compare.numbers import DASH, best, display, exact, interval, spread
from dbexp.compare.page import gallery
from dbexp.compare.page.advice import advice
from dbexp.compare.page.charts import charts
from dbexp.compare.page.curve_charts import WINDOW
from dbexp.compare.page.data import PageData
from dbexp.compare.page.figure import styles_of
from dbexp.compare.page.pictures import BUDGET, embed
from dbexp.compare.page.question import question
from dbexp.compare.page.race import race_tables
from dbexp.compare.statements import LEADS, Statement, is_tied, statements
from dbexp.compare.statistics import Moments, moments
from dbexp.core.errors import listed
from dbexp.evaluate.columns import RECOMMEND, REFERENCES, column_of, heading
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.objective import with_score

PAGE = "report.html"
_SCRIPTS = ("base", "theme", "tables", "filter", "plots", "lightbox", "pictures", "run", "start")
"""Parts of one function, in the order in which they run."""
_DASHES = {"solid": "none", "dash": "6 3", "dot": "2 3", "dashdot": "7 3 2 3"}
"""Dash of a line as plotly names it -> as SVG has it."""
_VERDICTS = {
    "better": "better: the interval excludes zero",
    "worse": "worse: the interval excludes zero",
    "same": "not significant: the interval includes zero",
    "once": "trained once, so not called significant",
    "open": "nothing was repeated, so there is no interval",
    "depends": "a mean would describe no run; see the rows below",
    "spread": "",
}
"""Verdict on a change -> what it means."""


def page(comparison: Comparison, folder: Path, budget: int = BUDGET, is_running: bool = False) -> str:
    """The page as HTML.

    Args:
        comparison: what to show.
        folder: where the page will be, which links to files start from.
        budget: characters of all pictures together.
        is_running: whether runs are still to come: the page then reads itself anew now and then.
    """
    sheets, extremes, copies = gallery.sheets(comparison), gallery.extremes(comparison), gallery.copies(comparison)
    images = embed(gallery.by_importance(sheets, extremes, copies), budget)
    opening = gallery.opening(comparison, sheets)
    plots, sentences = charts(comparison), statements(comparison)
    return (
        _environment()
        .get_template("page.html")
        .render(
            comparison=comparison,
            question=question(comparison),
            advice=advice(comparison),
            sections=_sections(comparison, sentences, bool(sheets), bool(plots), bool(extremes)),
            is_running=is_running,
            statements=sentences,
            reach=_reach(sentences),
            opening=opening,
            measures=tuple(column for column in MEASURES if _has(comparison, column)),
            others=tuple(column for column in comparison.columns if column not in MEASURES),
            benchmark_legend=BENCHMARK_LEGEND,
            costs=_costs(comparison),
            cost_titles=TITLES,
            cost_legend=LEGEND,
            races=race_tables(comparison),
            judged=(RECOMMEND,) if comparison.recommendation.first else (),
            with_score=with_score,
            leads=LEADS,
            front=listed([column_of(axis).title for axis in comparison.recommendation.axes]),
            column_of=column_of,
            column_heading=heading,
            display=display,
            exact=exact,
            spread=spread,
            dash=DASH,
            nothing=Estimate.missing(""),
            is_tied=is_tied,
            verdicts=_VERDICTS,
            small=f"{100 * SMALL:.0f} %",
            confidence=f"{100 * comparison.confidence:g} %",
            scopes=[s.behind.scope for s in comparison.standings if s.behind],
            interval=interval,
            best=comparison.best,
            best_means=_best_means(comparison),
            bounds_over_seeds=_bounds_over_seeds(comparison),
            has_seeds=any(len(standing.entries) > 1 for standing in comparison.standings),
            charts=plots,
            smoothing=WINDOW,
            sheets=sheets,
            extremes=extremes,
            copies=copies,
            left_out=images.left_out,
            data=PageData(comparison, images, folder).of(sheets, extremes, copies, opening),
            figures={c.key: {"figure": c.figure, "choices": c.choices, "axes": c.axes} for c in plots},
            pictures=list(images.uris),
            css=_asset("page.css"),
            js="\n".join(_asset(f"{part}.js") for part in _SCRIPTS),
            plotly=plotly.offline.get_plotlyjs() if plots else "",
            styles=styles_of(comparison) if any(chart.key == "loss" for chart in plots) else {},
            dashes=_DASHES,
        )
    )


def _sections(
    comparison: Comparison, sentences: Sequence[Statement], has_sheets: bool, has_plots: bool, has_extremes: bool
) -> list[tuple[str, str]]:
    """Places of the page with their names, of what is there."""
    places = {
        "verdict": ("Answer", True),
        "effects": ("Effects", any(statement.changes for statement in sentences)),
        "settings": ("Settings", any(len(standing.entries) > 1 for standing in comparison.standings)),
        "runs": ("Runs", bool(comparison.finished)),
        "pairs": ("Pairs", len([f for f in comparison.factors if not f.is_seed]) > 1 and bool(comparison.finished)),
        "benchmark": ("Benchmark", bool(comparison.benchmark)),
        "costs": ("Costs", are_known(comparison.finished)),
        "sheet": ("Pictures", has_sheets),
        "plots": ("Plots", has_plots),
        "extremes": ("Best and worst", has_extremes),
        "copies": ("Copies", bool(comparison.finished)),
    }
    return [(place, name) for place, (name, is_there) in places.items() if is_there]


def _costs(comparison: Comparison) -> list[tuple[str, str, list[str]]]:
    """Ids of the runs of a setting, its title, what it cost in words; none where nothing is on record."""
    if not are_known(comparison.finished):
        return []
    return [
        (" ".join(entry.id for entry in s.entries), s.title, words([entry.run.costs for entry in s.entries]))
        for s in comparison.standings
    ]


def _has(comparison: Comparison, column: str) -> bool:
    """Whether any run has a value: a column of dashes takes no place."""
    return any(math.isfinite(entry.run.value(column)) for entry in comparison.finished)


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _asset(name: str) -> str:
    return (resources.files("dbexp.compare.page") / "assets" / name).read_text(encoding="utf-8")


def _reach(sentences: Sequence[Statement]) -> dict[str, float]:
    """Column title -> the largest end of an interval, which the bars of that column are drawn to."""
    changes = [
        change for sentence in sentences for change in (*sentence.changes, *(c for _, at in sentence.cases for c in at))
    ]
    reach: dict[str, float] = {}
    for change in changes:
        ends = [abs(value) for value in change.estimate or () if math.isfinite(value)]
        reach[change.column] = max([reach.get(change.column, 0.0), *ends])
    return reach


def _best_means(comparison: Comparison) -> dict[str, str | None]:
    """Column -> the best mean over seeds as written."""
    return {
        column: best(column, (s.moments[column].mean for s in comparison.standings if column in s.moments))
        for column in (RECOMMEND, *MEASURES)
    }


@dataclass(frozen=True)
class _Bound:
    """A kind of reference with its moments over the references of that kind."""

    key: str
    title: str
    moments: Mapping[str, Moments]


def _bounds_over_seeds(comparison: Comparison) -> list[_Bound]:
    """Base models and real images as the table of settings shows them: other seeds have other samples of one base."""
    bounds = []
    for key, title in REFERENCES.items():
        rows = [reference.columns for reference in comparison.references if reference.key == key]
        columns = {column: moments([row[column].value for row in rows if column in row]) for column in MEASURES}
        if rows:
            bounds.append(_Bound(key, title, {column: of for column, of in columns.items() if of.n}))
    return bounds
