"""The plots of the page, as figures of plotly: plain data, drawn by its JavaScript in the reader's browser.

A trace that belongs to one run or to several says so in `meta`, so that the page's filter can hide it. Colours of text
and grids are the page's, for they follow its theme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dbexp.compare.comparison import FRONT, MEASURES, Comparison
from dbexp.compare.factors import Factor
from dbexp.compare.numbers import display
from dbexp.compare.page.cost_chart import cost_chart
from dbexp.compare.page.curve_charts import curve_charts
from dbexp.compare.page.figure import LEGEND, PALETTE, SCALE, Chart, Figure, number, plain
from dbexp.compare.statistics import Moments, by_level, pareto
from dbexp.core.errors import count, listed
from dbexp.evaluate.columns import RECOMMEND, column_of, heading

_LINES = [[0.0, "#3A7BBF"], [0.5, "#9A8FA0"], [1.0, "#D97706"]]
"""A scale without its ends, for thin lines that must be seen on white and on black."""


def charts(comparison: Comparison) -> list[Chart]:
    """All that make sense for these runs."""
    plots = [
        _front(comparison),
        cost_chart(comparison),
        _parallel(comparison),
        *(_effect(comparison, factor) for factor in comparison.factors),
        _heat_map(comparison),
        *curve_charts(comparison),
    ]
    return [chart for chart in plots if chart is not None]


def _front(comparison: Comparison) -> Chart | None:
    """Settings at their means, their seeds as small points; without seeds, runs."""
    axes = comparison.recommendation.axes
    x, y = axes[:2]
    entries = [e for e in comparison.finished if all(math.isfinite(e.run.value(column)) for column in axes)]
    if not entries:
        return None
    settings = [s for s in comparison.standings if all(column in s.moments for column in axes)]
    has_seeds = any(len(standing.entries) > 1 for standing in settings)
    traces: list[Figure] = []
    drifts = [e.run.value("pres") for e in entries]
    columns = [c for c in (x, y, *MEASURES, RECOMMEND) if all(math.isfinite(e.run.value(c)) for e in entries)]
    if has_seeds:
        means = [{column: of.mean for column, of in standing.moments.items()} for standing in settings]
        unbeaten = pareto([[column_of(column).sign * mean[column] for column in axes] for mean in means])
        members = {id(entry): standing.title for standing in settings for entry in standing.entries}
        for entry in entries:
            about = f"{plain(members.get(id(entry), ''))}<br>run {plain(entry.title)}"
            values = {c: entry.run.value(c) for c in (*MEASURES, *columns)}
            meta = {"run": entry.id, "values": _numbers(values, columns)}
            traces.append(_point(values, (x, y), about, size=5, meta=meta))
        for standing, mean, on_front in zip(settings, means, unbeaten, strict=True):
            about = f"<b>{plain(standing.title)}</b><br>mean of {count(len(standing.entries), 'run')}"
            text = plain(" · ".join(standing.settings.values())) if len(settings) <= LEGEND else ""
            meta = {"runs": [entry.id for entry in standing.entries], "values": _numbers(mean, columns)}
            traces.append(_point(mean, (x, y), about, size=12, on_front=on_front, text=text, meta=meta))
        edge = [(mean[x], mean[y]) for mean, on_front in zip(means, unbeaten, strict=True) if on_front]
    else:
        for entry in entries:
            values = {c: entry.run.value(c) for c in (*MEASURES, *columns)}
            text = plain(entry.id) if len(entries) <= LEGEND else ""
            about = f"<b>{plain(entry.title)}</b>"
            meta = {"run": entry.id, "values": _numbers(values, columns)}
            traces.append(_point(values, (x, y), about, size=11, on_front=entry.on_front, text=text, meta=meta))
        edge = [(e.run.value(x), e.run.value(y)) for e in entries if e.on_front]
    traces.insert(0, _edge(sorted(edge)))
    layout: Figure = {
        "showlegend": False,
        "xaxis": {"title": {"text": heading(x)}},
        "yaxis": {"title": {"text": heading(y)}},
        "height": 440,
    }
    if drifts := [value for value in drifts if math.isfinite(value)]:
        layout["coloraxis"] = {
            "colorscale": SCALE,
            "cmin": number(min(drifts)),  # said, for plotly widens the range of traces of one point each
            "cmax": number(max(drifts)),
            "colorbar": {"title": {"text": heading("pres")}, "thickness": 14, "outlinewidth": 0},
        }
    what = "setting" if has_seeds else "run"
    titles = listed([column_of(axis).title for axis in axes])
    caption = f"Diamonds: in {titles} no other {what} beats them."
    if has_seeds:
        names = ", ".join(f.title for f in comparison.factors if f.name in settings[0].settings)
        caption += f" Labels: {names}. Small points are single runs."
    return Chart(
        "front",
        f"{column_of(y).title} against {column_of(x).title}",
        caption,
        {"data": traces, "layout": layout},
        {},
        {column: heading(column) for column in columns},
        "Up is more like the subject, right is more like the prompt." if axes == FRONT else "",
    )


def _numbers(values: Mapping[str, float], columns: Sequence[str]) -> dict[str, float | None]:
    return {column: number(values.get(column, math.nan)) for column in columns}


def _edge(points: Sequence[tuple[float, float]]) -> Figure:
    """The line of what nothing beats."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [number(x) for x, _ in points],
        "y": [number(y) for _, y in points],
        "line": {"shape": "hv", "width": 1.5, "dash": "dot", "color": PALETTE[-1]},
        "hoverinfo": "skip",
    }


def _point(
    values: Mapping[str, float],
    axes: tuple[str, str],
    about: str,
    size: int,
    meta: Figure,
    on_front: bool = False,
    text: str = "",
) -> Figure:
    """A run or a setting among two columns, coloured by the drift of its class."""
    x, y = axes
    marker: Figure = {
        "size": size + 4 if on_front else size,
        "symbol": "diamond" if on_front else "circle",
        "line": {"width": 1.5 if size > 5 else 0.5, "color": "#ffffff"},
    }
    drift = values.get("pres", math.nan)
    if math.isfinite(drift):
        marker |= {"color": [number(drift)], "coloraxis": "coloraxis"}
    scores = "".join(f"<br>{column_of(c).title} {display(c, values[c])}" for c in MEASURES if c in values)
    return {
        "type": "scatter",
        "mode": "markers+text" if text else "markers",
        "cliponaxis": False,
        "x": [number(values[x])],
        "y": [number(values[y])],
        "text": [text],
        "textposition": "top center",
        "marker": marker,
        "hovertemplate": f"{about}{scores}<extra></extra>",
        "meta": meta,
    }


def _parallel(comparison: Comparison) -> Chart | None:
    entries = comparison.finished
    if len(entries) < 2:
        return None
    dimensions = []
    # lines that pass through one value lie side by side, or they would hide each other
    aside = [0.36 * (line / (len(entries) - 1) - 0.5) for line in range(len(entries))]
    for factor in comparison.factors:
        index = {level: place for place, level in enumerate(factor.levels)}
        dimensions.append(
            {
                "label": plain(factor.title),
                "values": [index[e.settings[factor.name]] + shift for e, shift in zip(entries, aside, strict=True)],
                "range": [-0.3, len(index) - 0.7],
                "tickvals": list(index.values()),
                "ticktext": [plain(level if len(level) <= 24 else f"{level[:23]}…") for level in index],
            }
        )
    for column in MEASURES:
        values = [number(e.run.value(column)) for e in entries]
        if all(value is not None for value in values):
            dimensions.append({"label": heading(column), "values": values, "tickformat": ".3f"})
    objective = [e.run.value(comparison.objective) for e in entries]
    line: Figure = {"colorscale": _LINES, "color": [0.0 if math.isnan(v) else number(v) for v in objective]}
    line |= {"showscale": True, "colorbar": {"title": {"text": heading(comparison.objective)}, "thickness": 14}}
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line, "meta": {"each": [e.id for e in entries]}}
    layout = {"height": 420, "margin": {"l": 70, "r": 40, "t": 60, "b": 30}}
    caption = (
        "A line per run. Drag along an axis: the whole page shows only runs that pass there. Drag an axis to move it."
    )
    colours = (heading(comparison.objective), *(str(dimension["label"]) for dimension in dimensions))
    figure: Figure = {"data": [trace], "layout": layout}
    return Chart("parallel", "All runs at once", caption, figure, {}, colours=tuple(dict.fromkeys(colours)))


def _effect(comparison: Comparison, factor: Factor) -> Chart | None:
    levels = [entry.settings[factor.name] for entry in comparison.finished]
    present = [level for level in factor.levels if level in levels]
    if len(present) < 2:
        return None
    columns = [c for c in MEASURES if any(math.isfinite(entry.run.value(c)) for entry in comparison.finished)]
    traces: list[Figure] = []
    layout: Figure = {
        "showlegend": False,
        "height": 250,
        "grid": {"rows": 1, "columns": len(columns), "pattern": "independent", "xgap": 0.3},
        "annotations": [],
        "margin": {"l": 50, "r": 10, "t": 34, "b": 44},
    }
    for position, column in enumerate(columns, start=1):
        moments = by_level(levels, [entry.run.value(column) for entry in comparison.finished])
        means = [moments.get(level, Moments(math.nan, math.nan, 0)) for level in present]
        axis = "" if position == 1 else str(position)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if factor.is_ordered else "markers",
                "x": [plain(level) for level in present],
                "y": [number(level.mean) for level in means],
                "error_y": {"type": "data", "array": [number(level.deviation) for level in means], "thickness": 1.2},
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
        z = [[number(scores[e.id].get(p, {}).get(column, math.nan)) for e in entries] for p in prompts]
        if any(value is not None for row in z for value in row):
            choices[heading(column)] = [len(traces)]
            traces.append(
                {
                    "type": "heatmap",
                    "z": z,
                    "x": [plain(e.title) for e in entries],
                    "y": [plain(prompt) for prompt in prompts],
                    "colorscale": SCALE,
                    "reversescale": column_of(column).better == "lower",
                    "xgap": 1,
                    "ygap": 1,
                    "visible": not traces,
                    "meta": {"each": [e.id for e in entries]},
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
    if len(entries) > LEGEND:
        layout["xaxis"] |= {"tickvals": [plain(e.title) for e in entries], "ticktext": [plain(e.id) for e in entries]}
        layout["xaxis"]["tickangle"] = 0
    caption = "Prompts that no run manages are dark rows; runs, best first, are columns."
    return Chart("prompts", "Prompt by prompt", caption, {"data": traces, "layout": layout}, choices)
