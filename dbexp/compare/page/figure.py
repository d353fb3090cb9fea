"""What the plots of the page share: a figure as plotly reads it, colours, numbers and text."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dbexp.compare.comparison import Comparison
from dbexp.compare.numbers import exact

# Okabe and Ito's palette, which colour-blind readers tell apart, without its yellow and black
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
SCALE = "Cividis"
LEGEND = 12
"""More runs than this are told apart by pointing at them."""
_DASHES = ("solid", "dash", "dot", "dashdot")

Figure = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A plot of the page.

    Attributes:
        key: names its place.
        title, caption: around it.
        figure: data and layout.
        choices: what a menu chooses between: title -> positions of the traces it shows; empty: no menu.
        axes: columns that menus put on x and on y: name -> heading; the first two are shown first; empty: no menus.
            A trace has its values of all of them in `meta.values`; one without belongs to the first two.
        note: after the caption, as long as it shows these two.
        colours: what a menu colours its lines by, first as they come; empty: no menu.
    """

    key: str
    title: str
    caption: str
    figure: Figure
    choices: Mapping[str, Sequence[int]]
    axes: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    colours: tuple[str, ...] = ()


def plain(text: str) -> str:
    """Text in which plotly sees no markup."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def number(value: float) -> float | None:
    """As in results.csv; null for NaN, which JSON lacks."""
    return None if math.isnan(value) else float(exact(value))


def styles_of(comparison: Comparison) -> dict[str, tuple[str, str]]:
    """Id of a run -> dash and colour of its lines: those of its setting, so that its seeds look alike."""
    settings = [[entry.id for entry in standing.entries] for standing in comparison.standings]
    ranked = {run for runs in settings for run in runs}
    settings += [[entry.id] for entry in comparison.entries if entry.id not in ranked]
    return {run: style for runs, style in zip(settings, styles(), strict=False) for run in runs}


def styles() -> Iterator[tuple[str, str]]:
    """Dash and colour of one line after the other, without end."""
    return itertools.cycle(itertools.product(_DASHES, PALETTE))
