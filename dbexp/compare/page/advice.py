"""The answer that a page opens with: which setting to take, how sure that is, what others lose, what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from dbexp.compare.comparison import Comparison
from dbexp.compare.costs import TITLES, are_known, words
from dbexp.compare.numbers import DASH, display
from dbexp.compare.standing import Standing
from dbexp.evaluate.columns import RECOMMEND, column_of

_NAMES = {"subject": "subject gained", "prompt": "prompt kept", "class": "class kept"}


@dataclass(frozen=True)
class Meter:
    """A share of a setting: its name, and per cent from 0 to 100."""

    name: str
    percent: int


@dataclass(frozen=True)
class Advice:
    """What to take.

    Attributes:
        setting: as a title; empty where nothing was swept.
        score: as written.
        meters: subject, prompt and class.
        rivals: titles of settings that cannot be told from it; `others`: how many there are to tell apart at all.
        repeated: whether anything was trained with more than one seed.
        alternative, alternative_value, alternative_meters: the setting with the most of the subject, if it is another.
        costs: of a run of the setting: name -> words.
        rule: how settings are weighed.
    """

    setting: str
    score: str
    meters: tuple[Meter, ...]
    rivals: tuple[str, ...]
    others: int
    repeated: bool
    alternative: str
    alternative_value: str
    alternative_meters: tuple[Meter, ...]
    costs: Mapping[str, str]
    rule: str


def advice(comparison: Comparison) -> Advice | None:
    """What the runs recommend; None where they recommend nothing."""
    of = comparison.recommendation
    if of.first is None:
        return None
    values = [_subject(standing) for standing in of.standings]
    highest = max(range(len(values)), key=values.__getitem__)
    return Advice(
        of.first.title if comparison.factors else "",
        display(RECOMMEND, of.score),
        _meters(of.shares[0]),
        tuple(standing.title for standing in of.not_told_apart),
        len(of.standings) - 1,
        any(len(standing.entries) > 1 for standing in of.standings),
        of.standings[highest].title if highest else "",
        f"{column_of('dino').title} {display('dino', values[highest])}" if highest else "",
        _meters(of.shares[highest]) if highest else (),
        _costs(of.first) if are_known(of.first.entries) else {},
        of.rule,
    )


def _subject(standing: Standing) -> float:
    moments = standing.moments.get("dino")
    return -math.inf if moments is None or math.isnan(moments.mean) else moments.mean


def _meters(shares: Mapping[str, float]) -> tuple[Meter, ...]:
    return tuple(Meter(title, round(100 * shares[name])) for name, title in _NAMES.items())


def _costs(standing: Standing) -> dict[str, str]:
    cells = words([entry.run.costs for entry in standing.entries])
    return {title: cell for title, cell in zip(TITLES, cells, strict=True) if cell != DASH}
