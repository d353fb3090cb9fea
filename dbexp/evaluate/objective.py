"""What runs are judged by: a column, a trade-off of columns that the user states, or the recommendation.

The recommendation weighs three shares of a run, each 0 at worst and 1 at best, on the way from the base model, which
knows nothing of the subject, to the subject's real images:

    subject  = (dino - dino of base) / (dino of real - dino of base)         how much of the subject is there
    prompt   = (clip_t - clip_t of real) / (clip_t of base - clip_t of real)  how much of the prompt is still there
    class    = (dino of real - pres) / (dino of real - pres of base)          how much of the class is still there

A share below 0 counts as 0, one above 1 as 1. The score is their harmonic mean, 3 / (1/subject + 1/prompt + 1/class),
as the F measure is of precision and recall (van Rijsbergen, Information Retrieval, 1979, chapter 7): nothing is bought
with the whole of another. A run that learnt nothing has 0, and so has one whose class has become the subject, or one
that shows the photographs whatever the prompt says: `clip_t` of real images is what these score under the prompts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from dbexp.evaluate.columns import COLUMNS, RECOMMEND, column_of, terms
from dbexp.evaluate.functional import Estimate

Rows: TypeAlias = Mapping[str, Mapping[str, Estimate]]
"""The rows of a report: run, base, real."""

RULE = (
    "harmonic mean of the subject gained (DINO), the prompt kept (CLIP-T) and the class kept (PRES), each a share of "
    "the way between the base model and real images"
)
SHORTEST = 0.02
"""A way between base model and real images that is shorter makes shares of it mean nothing."""


@dataclass(frozen=True)
class Share:
    """One of the three shares.

    Attributes:
        column: of the run.
        nothing, all: values at which it is 0 and 1.
    """

    column: str
    nothing: float
    all: float

    def of(self, value: float) -> float:
        """Between 0 and 1; NaN for NaN."""
        share = (value - self.nothing) / (self.all - self.nothing)
        return share if math.isnan(share) else min(max(share, 0.0), 1.0)


_ENDS = {
    "subject": ("dino", ("base", "dino"), ("real", "dino")),
    "prompt": ("clip_t", ("real", "clip_t"), ("base", "clip_t")),
    "class": ("pres", ("real", "dino"), ("base", "pres")),
}
"""Share -> its column, and the row and column where it is nothing and all."""
SHARES = tuple(_ENDS)
_LACKS = {
    ("base", "dino"): "samples of the base model (sample.base=true)",
    ("base", "clip_t"): "samples of the base model (sample.base=true)",
    ("base", "pres"): "class images of the base model (sample.class_images=25 or more)",
    ("run", "pres"): "class images (sample.class_images=25 or more)",
    ("real", "dino"): "two real images of the subject",
    ("real", "clip_t"): "CLIP-T of the real images (give the same command again, which evaluates anew)",
}


def _at(rows: Rows, row: str, name: str) -> float:
    columns = rows.get(row, {})
    return columns[name].value if name in columns else math.nan


def shares_of(rows: Rows) -> dict[str, Share]:
    """Name -> share, of those whose ends were measured and are apart."""
    shares = {name: Share(of, _at(rows, *nothing), _at(rows, *all)) for name, (of, nothing, all) in _ENDS.items()}
    signs = {"subject": 1, "prompt": 1, "class": -1}
    return {name: share for name, share in shares.items() if signs[name] * (share.all - share.nothing) >= SHORTEST}


def lacks(rows: Rows) -> list[str]:
    """What a run's recommendation lacks; empty: nothing."""
    needs = [place for of, *ends in _ENDS.values() for place in (*ends, ("run", of))]
    missing = [place for place in dict.fromkeys(needs) if math.isnan(_at(rows, *place))]
    if missing:
        return list(
            dict.fromkeys(_LACKS.get(place, f"{column_of(place[1]).title} of the {place[0]}") for place in missing)
        )
    apart = shares_of(rows)
    near = [column_of(_ENDS[name][0]).title for name in SHARES if name not in apart]
    return [f"a base model that is at least {SHORTEST:g} from real images in {title}" for title in near]


def parts(rows: Rows) -> dict[str, float]:
    """The three shares of a run; NaN for those that it lacks."""
    shares = shares_of(rows)
    return {
        name: shares[name].of(_at(rows, "run", shares[name].column)) if name in shares else math.nan for name in SHARES
    }


def value(rows: Rows, name: str) -> float:
    """Of a column of the run, a trade-off, or `recommend`; NaN for what the run lacks."""
    if name == RECOMMEND:
        return _harmonic(parts(rows))
    if weights := terms(name):
        return math.fsum(weight * _at(rows, "run", each) for each, weight in weights.items())
    return _at(rows, "run", name)


def _harmonic(of: Mapping[str, float]) -> float:
    if any(math.isnan(share) for share in of.values()):
        return math.nan
    return 0.0 if min(of.values()) == 0 else len(of) / math.fsum(1 / share for share in of.values())


def with_score(rows: Rows) -> Mapping[str, Estimate]:
    """The row of the run, with its recommendation where it has one."""
    score = value(rows, RECOMMEND)
    return rows["run"] if math.isnan(score) else {**rows["run"], RECOMMEND: Estimate(score)}


def slopes(rows: Rows, name: str) -> dict[str, float]:
    """Column -> how fast the objective rises with it at this run; empty for a column, and for what the run lacks."""
    if name != RECOMMEND:
        return terms(name)
    of, shares = parts(rows), shares_of(rows)
    score = _harmonic(of)
    if math.isnan(score):
        return {}
    rising = {}
    for each, part in of.items():
        inside = 0 < part < 1 and score > 0  # beyond the ends nothing changes
        rising[shares[each].column] = (
            score**2 / (len(of) * part**2) / (shares[each].all - shares[each].nothing) if inside else 0.0
        )
    return rising


def problem(name: str, more: tuple[str, ...] = ()) -> str | None:
    """What is wrong with an objective as a user wrote it, `objective=...` and what would be right; None: nothing.

    Args:
        name: one objective.
        more: names of further columns that the config adds.
    """
    known = (*COLUMNS, *more)
    if name == RECOMMEND:
        return None
    weights = terms(name)
    if not weights:
        if name in known:
            return None if column_of(name).sign else f"objective={name}: is no column that ranks runs; {_choose(known)}"
        return f"objective={name}: {_choose(known)}"
    if unknown := [each for each in weights if each not in known]:
        return f"objective={name}: there is no column {unknown[0]}; {_choose(known)}"
    for each, weight in weights.items():
        sign = column_of(each).sign
        if weight * sign <= 0:
            better = {1: "higher", -1: "lower", 0: "neither higher nor lower"}[sign]
            right = f"write {'-' if sign < 0 else ''}{abs(weight) or 1:g}*{each}" if sign else "leave it out"
            return f"objective={name}: {better} {column_of(each).title} is better; {right}"
    return None


def _choose(known: tuple[str, ...]) -> str:
    ranking = ", ".join(name for name in known if column_of(name).sign)
    return f"choose one of {RECOMMEND}, {ranking}, or a trade-off such as '0.5*dino+0.5*clip_t'"
