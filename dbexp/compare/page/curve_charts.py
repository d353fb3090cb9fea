"""Loss and learning rate over the steps of training, as plots of the page."""

from __future__ import annotations

from collections.abc import Mapping

from dbexp.compare.comparison import Comparison
from dbexp.compare.page.curves import LOSSES, Curve, curves, smooth
from dbexp.compare.page.figure import LEGEND, Chart, Figure, plain, styles, styles_of
from dbexp.compare.ranking import RankedRun
from dbexp.core.errors import listed

WINDOW = 15
"""Points of a moving mean, until the reader chooses another number."""


def curve_charts(comparison: Comparison) -> list[Chart | None]:
    """Loss and learning rate; None for what no run has recorded."""
    histories = {entry.id: curves(entry.run.folder) for entry in comparison.entries}
    return [_losses(comparison, histories), _rates(comparison, histories)]


def _losses(comparison: Comparison, histories: Mapping[str, Mapping[str, Curve]]) -> Chart | None:
    """A smooth line per run over what it was made from; of the subject's images and of class images apart.

    Seeds of one setting look alike and have one word in the legend, which the page gives to the first that it shows.
    """
    of_setting = {e.id: standing.title for standing in comparison.standings for e in standing.entries}
    look = styles_of(comparison)
    traces: list[Figure] = []
    choices: dict[str, list[int]] = {key: [] for key in LOSSES}
    for entry in comparison.entries:
        dash, colour = look[entry.id]
        name = plain(of_setting.get(entry.id, entry.title))
        for key in LOSSES:
            curve = histories[entry.id].get(key)
            if curve is None:
                continue
            line: Figure = {"type": "scatter", "mode": "lines", "x": list(curve.steps), "meta": {"run": entry.id}}
            line |= {"name": name, "legendgroup": name, "visible": key == "loss"}
            thin = {"y": list(curve.values), "line": {"width": 0.8, "color": colour}, "opacity": 0.3}
            thick = {"y": smooth(curve.values, WINDOW), "line": {"width": 1.8, "color": colour, "dash": dash}}
            hover: Figure = {"hovertemplate": f"step %{{x}}: %{{y:.4g}}<extra>{plain(entry.title)}</extra>"}
            hover["meta"] = {"run": entry.id, "smooths": len(traces)}  # the place of the line that it is made from
            choices[key] += [len(traces), len(traces) + 1]
            traces += [line | thin | {"showlegend": False, "hoverinfo": "skip"}, line | thick | hover]
    if not traces:
        return None
    menu = {f"of {whose}" if key != "loss" else "whole loss": choices[key] for key, whose in LOSSES.items()}
    menu = {title: positions for title, positions in menu.items() if positions}
    layout = _over_steps({"title": {"text": "loss"}}, len({trace["name"] for trace in traces}))
    caption = (
        "Bold: moving means. Faint: means over neighbouring steps; single steps are noise and may leave the frame."
    )
    colours = ("setting", *(factor.title for factor in comparison.factors)) if comparison.factors else ()
    return Chart("loss", "Loss", caption, {"data": traces, "layout": layout}, menu, colours=colours)


def _rates(comparison: Comparison, histories: Mapping[str, Mapping[str, Curve]]) -> Chart | None:
    """A line per distinct learning rate, however many runs share it."""
    groups: dict[Curve, list[RankedRun]] = {}
    for entry in comparison.entries:
        if curve := histories[entry.id].get("lr"):
            groups.setdefault(curve, []).append(entry)
    traces = []
    for (curve, entries), (dash, colour) in zip(groups.items(), styles(), strict=False):
        shared = [
            f"{factor.title}={entries[0].settings[factor.name]}"
            for factor in comparison.factors
            if len({entry.settings.get(factor.name) for entry in entries}) == 1
        ]
        name = " ".join(shared) or (
            "all runs" if len(groups) == 1 else f"run {listed([e.id for e in entries], most=4)}"
        )
        trace: Figure = {
            "type": "scatter",
            "mode": "lines",
            "x": list(curve.steps),
            "y": list(curve.values),
            "name": plain(name),
            "line": {"width": 2, "color": colour, "dash": dash},
            "hovertemplate": "step %{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
            "meta": {"runs": [entry.id for entry in entries]},
        }
        traces.append(trace)
    if not traces:
        return None
    # from zero, so that a constant rate is a straight line and not the noise of rounding
    layout = _over_steps(
        {"title": {"text": "learning rate"}, "exponentformat": "power", "rangemode": "tozero"}, len(traces)
    )
    return Chart("lr", "Learning rate", "", {"data": traces, "layout": layout}, {})


def _over_steps(axis: Figure, lines: int) -> Figure:
    return {
        "height": 360,
        "xaxis": {"title": {"text": "optimizer step"}},
        "yaxis": axis,
        "showlegend": lines <= LEGEND,
        "legend": {"orientation": "h", "y": -0.25},
    }
