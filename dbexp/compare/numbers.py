"""How numbers are written: once for the terminal, results.csv, results.md and the page, so that all say the same."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dbexp.evaluate.columns import column_of

DASH = "–"
MINUS = "−"


def exact(value: float) -> str:
    """Nine significant digits, for backbones compute in single precision; empty for NaN."""
    return "" if math.isnan(value) else f"{value:.9g}"


def display(column: str, value: float) -> str:
    """Three decimals, none for what is counted, a dash for NaN."""
    if math.isnan(value):
        return DASH
    return _sign(f"{value:.0f}" if column.startswith("n_") else f"{value:.3f}")


def signed(column: str, value: float) -> str:
    """The same for a difference, with its sign."""
    text = display(column, value)
    return text if value <= 0 or math.isnan(value) else f"+{text}"


def percent(share: float) -> str:
    """A part of a whole, with its sign, in whole percent."""
    text = f"{100 * share:.0f}"
    sign = "+" if float(text) > 0 else ""
    return f"{sign}{_sign(text)} %"


def interval(column: str, low: float, high: float) -> str:
    """Both ends in brackets; empty where there is none."""
    if math.isnan(low) or math.isnan(high):
        return ""
    return f"[{display(column, low)}, {display(column, high)}]"


def spread(column: str, deviation: float) -> str:
    """A standard deviation, to follow its mean; empty for NaN."""
    return "" if math.isnan(deviation) else f"± {display(column, deviation)}"


def best(column: str, values: Iterable[float]) -> str | None:
    """The best value of a column as written, so that a tie on paper is a tie; None where no value beats another."""
    sign = column_of(column).sign
    numbers = [value for value in values if not math.isnan(value)]
    if not sign or len({display(column, value) for value in numbers}) < 2:
        return None
    return display(column, max(numbers, key=lambda value: sign * value))


def _sign(text: str) -> str:
    """A true minus sign, and none before zero."""
    if not text.startswith("-"):
        return text
    return text[1:] if float(text) == 0 else MINUS + text[1:]
