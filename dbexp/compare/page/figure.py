"""What the plots of the page share: a figure as plotly reads it, colours, numbers and text."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """

    key: str
    title: str
    caption: str
    figure: Figure
    choices: Mapping[str, Sequence[int]]


def plain(text: str) -> str:
    """Text in which plotly sees no markup."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def number(value: float) -> float | None:
    """As in results.csv; null for NaN, which JSON lacks."""
    return None if math.isnan(value) else float(exact(value))


def styles() -> Iterator[tuple[str, str]]:
    """Dash and colour of one line after the other, without end."""
    return itertools.cycle(itertools.product(_DASHES, PALETTE))
