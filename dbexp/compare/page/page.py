"""report.html: one page that needs nothing but itself, laid out from a comparison.

Text goes through Jinja's escaping and data through its JSON filter, so that a prompt or a path is never markup. Figures
and pictures lie in the page as data, and are drawn when the reader comes to them: the first screen is plain HTML.
"""

from __future__ import annotations

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from dbexp.compare.comparison import MEASURES, Comparison
from dbexp.compare.numbers import DASH, best, exact, interval, spread, written
from dbexp.compare.page import gallery
from dbexp.compare.page.charts import PALETTE, charts
from dbexp.compare.page.gallery import Sheet, Shot
from dbexp.compare.page.pictures import BUDGET, Packed, embed
from dbexp.compare.statements import SMALL, is_tied, statements
from dbexp.compare.statistics import Moments, moments
from dbexp.core.errors import count, listed
from dbexp.evaluate.columns import COLUMNS, REFERENCES, heading
from dbexp.evaluate.functional import Estimate

PAGE = "report.html"
_TOLD = {
    "better": "better: the interval excludes zero",
    "worse": "worse: the interval excludes zero",
    "same": "not significant: the interval includes zero",
    "open": "one value per run, so there is no interval",
    "spread": "",
}
"""Verdict on a change -> what it means."""


def page(comparison: Comparison, folder: Path, budget: int = BUDGET) -> str:
    """The page as HTML.

    Args:
        comparison: what to show.
        folder: where the page will be, which links to files start from.
        budget: characters of all pictures together.
    """
    shown, best, copied = gallery.sheets(comparison), gallery.extremes(comparison), gallery.copies(comparison)
    packed = embed(gallery.by_importance(shown, best, copied), budget)
    drawn = charts(comparison)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.lstrip_blocks = True
    return environment.from_string(_asset("page.html")).render(
        comparison=comparison,
        title=" and ".join(sweep.name for sweep in comparison.sweeps.values()),
        heading=_heading(comparison),
        statements=statements(comparison),
        measures=MEASURES,
        others=tuple(column for column in comparison.columns if column not in MEASURES),
        columns=COLUMNS,
        column_heading=heading,
        written=written,
        exact=exact,
        spread=spread,
        dash=DASH,
        nothing=Estimate.missing(""),
        is_tied=is_tied,
        told=_TOLD,
        small=f"{100 * SMALL:.0f} %",
        interval=interval,
        best=comparison.best,
        best_means=_best_means(comparison),
        bounds_over_seeds=_bounds_over_seeds(comparison),
        has_seeds=any(len(standing.entries) > 1 for standing in comparison.standings),
        charts=drawn,
        sheets=shown,
        extremes=best,
        copies=copied,
        packed=packed,
        data=_data(comparison, shown, best, copied, packed, folder),
        figures={chart.key: {"figure": chart.figure, "choices": chart.choices} for chart in drawn},
        pictures=list(packed.uris),
        css=_asset("page.css"),
        js=_asset("page.js"),
        plotly=plotly.offline.get_plotlyjs() if drawn else "",
        palette=PALETTE,
    )


def _asset(name: str) -> str:
    return (resources.files("dbexp.compare.page") / "assets" / name).read_text(encoding="utf-8")


def _heading(comparison: Comparison) -> str:
    """How many runs of what."""
    finished, all_runs = len(comparison.finished), len(comparison.entries)
    subjects = list(dict.fromkeys(str(entry.run.config.get("dataset.name")) for entry in comparison.finished))
    models = list(dict.fromkeys(str(entry.run.config.get("model.name")) for entry in comparison.finished))
    missing = f", {all_runs - finished} without a result" if all_runs > finished else ""
    of = f" of {_few(subjects, 'subject')} on {_few(models, 'model')}" if subjects else ""
    return f"{count(finished, 'run')}{of}{missing}"


def _few(names: Sequence[str], noun: str) -> str:
    return listed(names) if len(names) < 4 else count(len(names), noun)


def _best_means(comparison: Comparison) -> dict[str, str | None]:
    """Column -> the best mean over seeds as written."""
    return {
        column: best(column, (s.moments[column].mean for s in comparison.standings if column in s.moments))
        for column in MEASURES
    }


@dataclass(frozen=True)
class _Bound:
    """A kind of reference with its moments over the references of that kind."""

    key: str
    title: str
    moments: Mapping[str, Moments]


def _bounds_over_seeds(comparison: Comparison) -> list[_Bound]:
    """Base models and real images as the table of settings shows them: other seeds have other samples of one base."""
    found = []
    for key, title in REFERENCES.items():
        own = [reference.columns for reference in comparison.references if reference.key == key]
        columns = {column: moments([row[column].value for row in own if column in row]) for column in MEASURES}
        if own:
            found.append(_Bound(key, title, {column: of for column, of in columns.items() if of.n}))
    return found


def _data(
    comparison: Comparison,
    shown: Sequence[Sheet],
    best: Mapping[str, tuple[list[Shot], list[Shot]]],
    copied: Sequence[gallery.CopyPair],
    packed: Packed,
    folder: Path,
) -> dict[str, Any]:
    """What the page's script works on: runs with their settings, and where each picture is."""

    def place(path: Path) -> dict[str, Any]:
        return {"picture": packed.places.get(path), "file": _link(path, folder)}

    titles = {entry.id: entry.title for entry in comparison.entries} | {"base": "base model"}

    def shot(one: Shot) -> dict[str, Any]:
        scores = ", ".join(
            f"{COLUMNS[column].title} {written(column, one.values[column])}"
            for column in gallery.EXTREMES
            if column in one.values
        )
        about = {"run": one.run, "title": titles[one.run], "prompt": one.prompt, "number": one.number}
        return {**place(one.path), **about, "scores": scores}

    def by_number(shots: Sequence[Shot]) -> dict[int, Any]:
        return {one.number: shot(one) for one in shots}

    return {
        "runs": {entry.id: dict(entry.settings) for entry in comparison.entries},
        "factors": [asdict(factor) for factor in comparison.factors],
        "sheets": [
            {
                "title": sheet.title,
                "prompts": list(sheet.prompts),
                "real": [place(path) for path in sheet.real],
                "columns": [
                    *(
                        [
                            {
                                "run": "base",
                                "title": "base model",
                                "shots": [by_number(sheet.base.get(p, ())) for p in sheet.prompts],
                            }
                        ]
                        if sheet.base
                        else []
                    ),
                    *(
                        {
                            "run": name,
                            "title": titles[name],
                            "shots": [by_number(sheet.shots[name].get(p, ())) for p in sheet.prompts],
                        }
                        for name in sheet.runs
                    ),
                ],
            }
            for sheet in shown
        ],
        "extremes": {
            column: [[{**shot(one), "value": written(column, one.values[column])} for one in shots] for shots in pair]
            for column, pair in best.items()
        },
        "copies": [
            {
                "sample": shot(pair.shot),
                "original": place(pair.original),
                "similarity": written("dino", pair.similarity),
            }
            for pair in copied
        ],
    }


def _link(path: Path, folder: Path) -> str:
    """A file as the page links to it: relative, with every odd character encoded."""
    return urllib.parse.quote(Path(os.path.relpath(path, folder)).as_posix())
