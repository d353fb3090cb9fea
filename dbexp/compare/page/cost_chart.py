"""What quality costs: settings by the objective, against seconds, memory and sizes."""

from __future__ import annotations

import math
from collections.abc import Callable

from dbexp.compare.comparison import Comparison
from dbexp.compare.costs import SHARE
from dbexp.compare.numbers import display
from dbexp.compare.page.figure import LEGEND, PALETTE, Chart, Figure, number, plain
from dbexp.evaluate.columns import column_of, heading
from dbexp.runs.costs import Costs

_AXES: dict[str, Callable[[Costs], float | None]] = {
    "training, seconds": lambda costs: costs.train_seconds,
    "training, MiB": lambda costs: costs.train_memory_mib,
    "sampling, seconds": lambda costs: costs.sample_seconds,
    "trained parameters": lambda costs: costs.parameters,
    "LoRA file, bytes": lambda costs: costs.lora_bytes,
}


def cost_chart(comparison: Comparison) -> Chart | None:
    """A point per setting, means over its runs; a menu chooses the cost. None where settings do not differ in any."""
    objective = comparison.objective
    traces: list[Figure] = []
    choices: dict[str, list[int]] = {}
    for title, cost in _AXES.items():
        points = []
        for standing in comparison.standings:
            values = [value for entry in standing.entries if (value := cost(entry.run.costs)) is not None]
            quality = standing.moments[objective].mean if objective in standing.moments else math.nan
            if values and math.isfinite(quality):
                points.append((math.fsum(values) / len(values), quality, standing))
        if len({x for x, _, _ in points}) < 2:
            continue
        choices[title] = [len(traces)]
        share = (
            SHARE if any(entry.run.costs.is_share for _, _, standing in points for entry in standing.entries) else ""
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text" if len(points) <= LEGEND else "markers",
                "cliponaxis": False,
                "x": [number(x) for x, _, _ in points],
                "y": [number(y) for _, y, _ in points],
                "text": [plain(" · ".join(standing.settings.values())) for _, _, standing in points],
                "textposition": "top center",
                "marker": {"size": 12, "color": PALETTE[0], "line": {"width": 1.5, "color": "#ffffff"}},
                "hovertemplate": [
                    f"<b>{plain(standing.title)}</b><br>{title} {share if 'training' in title else ''}{x:,.4g}"
                    f"<br>{plain(column_of(objective).title)} {display(objective, y)}<extra></extra>"
                    for x, y, standing in points
                ],
                "visible": not traces,
            }
        )
    if not traces:
        return None
    layout: Figure = {
        "showlegend": False,
        "height": 380,
        "xaxis": {"title": {"text": next(iter(choices))}},  # the page puts there what its menu chooses
        "yaxis": {"title": {"text": heading(objective)}},
    }
    caption = "A point per setting, mean over its runs. What trained in a pack has its share of that pack."
    return Chart("cost", "Quality against cost", caption, {"data": traces, "layout": layout}, choices)
