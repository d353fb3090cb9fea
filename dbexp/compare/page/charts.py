"""The plots of the page, as figures of plotly: plain data, drawn by its JavaScript in the reader's browser.

A trace that belongs to one run says so in `meta`, so that the page's filter can hide it. Colours of text and grids are
the page's, for they follow its theme.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbexp.compare.comparison import FRONT, MEASURES, Comparison
from dbexp.compare.factors import Factor
from dbexp.compare.numbers import display, exact
from dbexp.compare.page.curves import Curve, curves
from dbexp.compare.statistics import Moments, by_level
from dbexp.evaluate.columns import COLUMNS, heading

# Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow and black
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
SCALE = "Cividis"
_DASHES = ("solid", "dash", "dot", "dashdot")
_LEGEND = 12  # more runs than this are told apart by pointing at them

Figure = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A plot of the page.

    Attributes:
        key: names its place.
        title, caption: around it.
        figure: data and layout.
        choices: what a menu chooses between: title -> positions of the traces it shows; empty: no menu.
    """

    key: str
    title: str
    caption: str
    figure: Figure
    choices: Mapping[str, Sequence[int]]


def charts(comparison: Comparison) -> list[Chart]:
    """All that make sense for these runs."""
    plots = [
        _front(comparison),
        _parallel(comparison),
        *(_effect(comparison, factor) for factor in comparison.factors),
        _heat_map(comparison),
        *_curves(comparison),
    ]
    return [chart for chart in plots if chart is not None]


def plain(text: str) -> str:
    """Text in which plotly sees no markup."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def _number(value: float) -> float | None:
    """As in results.csv; null for NaN, which JSON lacks."""
    return None if math.isnan(value) else float(exact(value))


def _front(comparison: Comparison) -> Chart | None:
    x, y = FRONT
    entries = [e for e in comparison.finished if all(math.isfinite(e.run.value(column)) for column in FRONT)]
    if not entries:
        return None
    drifts = [value for e in entries if math.isfinite(value := e.run.value("pres"))]
    traces: list[Figure] = []
    edge = sorted((e for e in entries if e.on_front), key=lambda e: e.run.value(x))
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": [_number(e.run.value(x)) for e in edge],
            "y": [_number(e.run.value(y)) for e in edge],
            "line": {"shape": "hv", "width": 1.5, "dash": "dot", "color": PALETTE[-1]},
            "hoverinfo": "skip",
        }
    )
    for entry in entries:
        marker: Figure = {
            "size": 15 if entry.on_front else 11,
            "symbol": "diamond" if entry.on_front else "circle",
            "line": {"width": 1.5, "color": "#ffffff"},
        }
        drift = entry.run.value("pres")
        if math.isfinite(drift):
            marker |= {"color": [_number(drift)], "coloraxis": "coloraxis"}
        scores = "".join(f"<br>{COLUMNS[c].title} {display(c, entry.run.value(c))}" for c in MEASURES)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text" if len(entries) <= _LEGEND else "markers",
                "x": [_number(entry.run.value(x))],
                "y": [_number(entry.run.value(y))],
                "text": [plain(entry.id)],
                "textposition": "top center",
                "marker": marker,
                "hovertemplate": f"<b>{plain(entry.title)}</b>{scores}<extra></extra>",
                "meta": {"run": entry.id},
            }
        )
    layout: Figure = {
        "showlegend": False,
        "xaxis": {"title": {"text": heading(x)}},
        "yaxis": {"title": {"text": heading(y)}},
        "height": 440,
    }
    if drifts:
        layout["coloraxis"] = {
            "colorscale": SCALE,
            "cmin": _number(min(drifts)),  # said, for plotly widens the range of traces of one point each
            "cmax": _number(max(drifts)),
            "colorbar": {"title": {"text": heading("pres")}, "thickness": 14, "outlinewidth": 0},
        }
    caption = "Diamonds: no other run is better in both. Up is more like the subject, right is more like the prompt."
    return Chart("front", "Subject against prompt", caption, {"data": traces, "layout": layout}, {})


def _parallel(comparison: Comparison) -> Chart | None:
    entries = comparison.finished
    if len(entries) < 2:
        return None
    dimensions = []
    for factor in comparison.factors:
        index = {level: number for number, level in enumerate(factor.levels)}
        dimensions.append(
            {
                "label": plain(factor.title),
                "values": [index[e.settings[factor.name]] for e in entries],
                "tickvals": list(index.values()),
                "ticktext": [plain(level if len(level) <= 24 else f"{level[:23]}…") for level in index],
            }
        )
    for column in MEASURES:
        values = [_number(e.run.value(column)) for e in entries]
        if all(value is not None for value in values):
            dimensions.append({"label": heading(column), "values": values, "tickformat": ".3f"})
    objective = [e.run.value(comparison.objective) for e in entries]
    line: Figure = {"colorscale": SCALE, "color": [0.0 if math.isnan(v) else _number(v) for v in objective]}
    line |= {"showscale": True, "colorbar": {"title": {"text": heading(comparison.objective)}, "thickness": 14}}
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line}
    layout = {"height": 420, "margin": {"l": 70, "r": 40, "t": 60, "b": 30}}
    caption = "A line per run. Drag along an axis to keep only the runs that pass there; drag an axis to move it."
    return Chart("parallel", "All runs at once", caption, {"data": [trace], "layout": layout}, {})


def _effect(comparison: Comparison, factor: Factor) -> Chart | None:
    levels = [entry.settings[factor.name] for entry in comparison.finished]
    present = [level for level in factor.levels if level in levels]
    if len(present) < 2:
        return None
    traces: list[Figure] = []
    layout: Figure = {
        "showlegend": False,
        "height": 250,
        "grid": {"rows": 1, "columns": len(MEASURES), "pattern": "independent", "xgap": 0.3},
        "annotations": [],
        "margin": {"l": 50, "r": 10, "t": 34, "b": 44},
    }
    for number, column in enumerate(MEASURES, start=1):
        moments = by_level(levels, [entry.run.value(column) for entry in comparison.finished])
        means = [moments.get(level, Moments(math.nan, math.nan, 0)) for level in present]
        axis = "" if number == 1 else str(number)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if factor.is_ordered else "markers",
                "x": [plain(level) for level in present],
                "y": [_number(level.mean) for level in means],
                "error_y": {"type": "data", "array": [_number(level.deviation) for level in means], "thickness": 1.2},
                "marker": {"color": PALETTE[0], "size": 9},
                "line": {"color": PALETTE[0], "width": 1.5},
                "customdata": [level.n for level in means],
                "hovertemplate": "%{x}: %{y:.3f} ± %{error_y.array:.3f}, %{customdata} runs<extra></extra>",
                "xaxis": f"x{axis}",
                "yaxis": f"y{axis}",
            }
        )
        layout[f"xaxis{axis}"] = {"type": "category"}
        layout[f"yaxis{axis}"] = {"tickformat": ".3f", "nticks": 5}
        layout["annotations"].append(
            {
                "text": heading(column),
                "showarrow": False,
                "xref": f"x{axis} domain",
                "yref": f"y{axis} domain",
                "x": 0.5,
                "y": 1.18,
            }
        )
    caption = "Mean and standard deviation over all runs that have the value, whatever else differs."
    return Chart(f"effect-{factor.name}", factor.name, caption, {"data": traces, "layout": layout}, {})


def _heat_map(comparison: Comparison) -> Chart | None:
    entries = comparison.finished
    scores = {
        entry.id: {row.prompt: row.values for row in entry.run.report.prompts if row.row == "run"}
        for entry in entries
        if entry.run.report
    }
    prompts = list(dict.fromkeys(prompt for by_prompt in scores.values() for prompt in by_prompt))
    traces: list[Figure] = []
    choices: dict[str, list[int]] = {}
    for column in MEASURES:
        z = [[_number(scores[e.id].get(p, {}).get(column, math.nan)) for e in entries] for p in prompts]
        if any(value is not None for row in z for value in row):
            choices[heading(column)] = [len(traces)]
            traces.append(
                {
                    "type": "heatmap",
                    "z": z,
                    "x": [plain(e.title) for e in entries],
                    "y": [plain(prompt) for prompt in prompts],
                    "colorscale": SCALE,
                    "reversescale": COLUMNS[column].better == "lower",
                    "xgap": 1,
                    "ygap": 1,
                    "visible": not traces,
                    "colorbar": {"thickness": 14, "outlinewidth": 0},
                    "hovertemplate": "%{y}<br>%{x}<br><b>%{z:.3f}</b><extra></extra>",
                }
            )
    if not traces:
        return None
    layout: Figure = {
        "height": 150 + 21 * len(prompts),
        "xaxis": {"tickangle": -35, "automargin": True, "showgrid": False},
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
    }
    if len(entries) > _LEGEND:
        layout["xaxis"] |= {"tickvals": [plain(e.title) for e in entries], "ticktext": [plain(e.id) for e in entries]}
        layout["xaxis"]["tickangle"] = 0
    caption = "Prompts that no run manages are dark rows; runs, best first, are columns."
    return Chart("prompts", "Prompt by prompt", caption, {"data": traces, "layout": layout}, choices)


def _curves(comparison: Comparison) -> list[Chart | None]:
    histories = [(entry, curves(entry.run.folder)) for entry in comparison.entries]
    styles = list(itertools.islice(itertools.cycle(itertools.product(_DASHES, PALETTE)), len(histories)))

    def chart(key: str, title: str, axis: Figure, caption: str) -> Chart | None:
        traces = []
        for (entry, history), (dash, colour) in zip(histories, styles, strict=True):
            curve: Curve | None = history.get(key)
            if curve is None:
                continue
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": list(curve.steps),
                    "y": list(curve.values),
                    "name": plain(entry.title),
                    "line": {"width": 1.6, "color": colour, "dash": dash},
                    "hovertemplate": "step %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
                    "meta": {"run": entry.id},
                }
            )
        if not traces:
            return None
        layout = {
            "height": 360,
            "xaxis": {"title": {"text": "optimizer step"}},
            "yaxis": axis,
            "showlegend": len(traces) <= _LEGEND,
            "legend": {"orientation": "h", "y": -0.25},
        }
        return Chart(key, title, caption, {"data": traces, "layout": layout}, {})

    return [
        chart("loss", "Loss", {"title": {"text": "loss"}}, "Means over neighbouring steps; single steps are noise."),
        chart("lr", "Learning rate", {"title": {"text": "learning rate"}, "exponentformat": "power"}, ""),
    ]
