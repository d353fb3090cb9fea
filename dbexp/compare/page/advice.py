"""The answer a page opens with: what to take, how sure that is, what others lose, what it costs, how to use it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dbexp.compare.comparison import Comparison
from dbexp.compare.costs import SHARE, TITLES, are_known, means, words
from dbexp.compare.numbers import display, interval, spread
from dbexp.compare.standing import Standing
from dbexp.evaluate.columns import RECOMMEND, column_of
from dbexp.runs.folder import RunFolder

_EDGE = 2  # per cent of a bar that stay free at either end
_NAMES = {"subject": "subject gained", "prompt": "prompt kept", "class": "class kept"}


@dataclass(frozen=True)
class Meter:
    """A share of a setting: its name, and per cent from 0 to 100."""

    name: str
    percent: int


@dataclass(frozen=True)
class Distance:
    """How far another setting's score is from the recommended one's.

    Attributes:
        title: of the other setting.
        values: of the parameters, in the order of `Advice.parameters`.
        is_tied: whether the interval includes zero.
        words: value and interval.
        low, value, high: where a bar has them, from 0 to 100.
    """

    title: str
    values: str
    is_tied: bool
    words: str
    low: float
    value: float
    high: float


@dataclass(frozen=True)
class Cost:
    """What a run of the setting took: of what, how much, and the least of all settings where that is another."""

    name: str
    value: str
    least: str

    @property
    def is_share(self) -> bool:
        """Whether it is a lane's part of what a pack took."""
        return self.value.startswith(SHARE)


@dataclass(frozen=True)
class Advice:
    """What to take.

    Attributes:
        setting: as a title; empty where nothing was swept, or only seeds and subjects.
        score, spread: as written; without a spread where nothing was repeated.
        runs: ids of its runs.
        meters: subject, prompt and class.
        rivals: titles of settings that cannot be told from it; `others`: how many there are to tell apart at all.
        parameters: that tell settings apart.
        distances: of the other settings, best first, all on one scale; none without intervals.
        zero: where a bar has the recommended setting itself, from 0 to 100.
        scope: what the intervals speak of.
        repeated: whether anything was trained with more than one seed.
        alternative, alternative_value, alternative_meters: the setting with the most of the subject, if it is another.
        costs: of a run of the setting.
        rule: how settings are weighed.
        use: a command that draws with its first run; empty where no LoRA is there.
    """

    setting: str
    score: str
    spread: str
    runs: tuple[str, ...]
    meters: tuple[Meter, ...]
    rivals: tuple[str, ...]
    others: int
    parameters: str
    distances: tuple[Distance, ...]
    zero: float
    scope: str
    repeated: bool
    alternative: str
    alternative_value: str
    alternative_meters: tuple[Meter, ...]
    costs: tuple[Cost, ...]
    rule: str
    use: str


def advice(comparison: Comparison) -> Advice | None:
    """What the runs recommend; None where they recommend nothing."""
    of = comparison.recommendation
    if of.first is None:
        return None
    values = [_subject(standing) for standing in of.standings]
    distances, zero = _distances(of.standings[1:])
    highest = max(range(len(values)), key=values.__getitem__)
    return Advice(
        of.first.title if any(not (factor.is_seed or factor.is_subject) for factor in comparison.factors) else "",
        display(RECOMMEND, of.score),
        spread(RECOMMEND, of.first.moments[RECOMMEND].deviation),
        tuple(entry.id for entry in of.first.entries),
        _meters(of.shares[0]),
        tuple(standing.title for standing in of.not_told_apart),
        len(of.standings) - 1,
        _values(factor.title for factor in comparison.factors if factor.name in of.settings),
        distances,
        zero,
        next((standing.behind.scope for standing in of.standings if standing.behind), ""),
        any(len(standing.entries) > 1 for standing in of.standings),
        of.standings[highest].title if highest else "",
        f"{column_of('dino').title} {display('dino', values[highest])}" if highest else "",
        _meters(of.shares[highest]) if highest else (),
        _costs(of.first, of.standings) if are_known(of.first.entries) else (),
        of.rule,
        _use(of.first),
    )


def _subject(standing: Standing) -> float:
    moments = standing.moments.get("dino")
    return -math.inf if moments is None or math.isnan(moments.mean) else moments.mean


def _meters(shares: Mapping[str, float]) -> tuple[Meter, ...]:
    return tuple(Meter(title, round(100 * shares[name])) for name, title in _NAMES.items())


def _values(words: Iterable[str]) -> str:
    return " · ".join(words)


def _distances(others: Sequence[Standing]) -> tuple[tuple[Distance, ...], float]:
    """On one scale, which holds the ends of all intervals and the recommended setting itself; and where that one is."""
    known = [(standing, standing.behind) for standing in others if standing.behind]
    ends = [0.0, *(end for _, behind in known for end in (behind.low, behind.high))]
    low, high = min(ends), max(ends)
    if low == high or not all(map(math.isfinite, ends)):
        return (), 0.0

    def place(value: float) -> float:
        return _EDGE + (100 - 2 * _EDGE) * (value - low) / (high - low)

    distances = []
    for standing, behind in known:
        words = f"{display(RECOMMEND, behind.value)} {interval(RECOMMEND, behind.low, behind.high)}"
        values, is_tied = _values(standing.settings.values()), not behind.is_significant
        places = (place(behind.low), place(behind.value), place(behind.high))
        distances.append(Distance(standing.title, values, is_tied, words, *places))
    return tuple(distances), place(0.0)


def _costs(standing: Standing, others: Sequence[Standing]) -> tuple[Cost, ...]:
    """What differs between settings has the least of them beside it: that is what another one would save."""
    costs = [[entry.run.costs for entry in other.entries] for other in others]
    cells, numbers = [words(of) for of in costs], [means(of) for of in costs]
    here = list(others).index(standing)
    rows = []
    for place, title in enumerate(TITLES):
        known = [row for row, of in enumerate(numbers) if math.isfinite(of[place])]
        if here in known:
            least = cells[min(known, key=lambda row: numbers[row][place])][place]
            rows.append(Cost(title, cells[here][place], "" if least == cells[here][place] else least))
    return tuple(rows)


def _use(standing: Standing) -> str:
    folder = standing.entries[0].run.folder
    if not RunFolder(folder).lora.is_file():
        return ""
    return shlex.join(["dbexp-generate", f"run={folder}"]) + ' prompt="a {token} {class} in the snow"'
