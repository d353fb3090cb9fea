"""What a step of a parameter does to the columns, in words: better or worse, how much, and what nobody can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dbexp.compare.comparison import Scale
from dbexp.compare.inference.estimate import EffectEstimate
from dbexp.compare.numbers import interval, percent, signed
from dbexp.compare.scores import CLASS_IMAGE
from dbexp.compare.statistics import Moments
from dbexp.evaluate.columns import column_of

SMALL = 0.05
"""A significant difference is called a little below this part of the way from the base model to real images."""
WAY = "of the way from base to real"


@dataclass(frozen=True)
class Change:
    """One column of an effect, as written.

    Attributes:
        column: its title.
        value, interval: of the difference; the interval is empty where there is none. Where effects differ and their
            mean describes no run: that they depend, and on what.
        verdict: better or worse, where the interval excludes zero; same, where it does not; once, for trainings that
            were not repeated; open, without an interval; depends.
        share: the difference as a part of the way from base to real; empty where there is no such way.
        is_small: whether that part is below `SMALL`, or, for a column without it, whether the spread between seeds is
            larger than the difference.
        scope: what the interval speaks of.
        estimate: the difference and the ends of its interval, NaN where there is none; None where there is no number.
    """

    column: str
    value: str
    interval: str
    verdict: str
    share: str = ""
    is_small: bool = False
    scope: str = ""
    estimate: tuple[float, float, float] | None = None

    @property
    def text(self) -> str:
        """As in a sentence."""
        return " ".join(part for part in (self.column, self.value, self.interval) if part)


def scope_of(column: str, estimate: EffectEstimate) -> str:
    """What an interval of a column speaks of, for the end of a sentence."""
    return estimate.scope_of(CLASS_IMAGE if column == "pres" else "prompt")


def change(column: str, difference: EffectEstimate, scale: Scale | None = None, noise: Moments | None = None) -> Change:
    """A difference as written, whether it is good news, and whether it is large.

    Args:
        column: of the metric table.
        difference: between two values of a parameter.
        scale: of the column, if it has one.
        noise: spread of the column between seeds, if it is known.
    """
    if math.isnan(difference.low):
        verdict = "open"
    elif difference.counts.seeds == 1:
        verdict = "once"
    elif not difference.is_significant:
        verdict = "same"
    else:
        verdict = "better" if (difference.value > 0) == (column_of(column).better == "higher") else "worse"
    share = math.nan if scale is None else scale.part(difference.value)
    is_small = abs(share) < SMALL  # False for NaN
    if math.isnan(share) and noise is not None:
        is_small = abs(difference.value) < noise.deviation
    return Change(
        column_of(column).title,
        signed(column, difference.value),
        interval(column, difference.low, difference.high),
        verdict,
        "" if math.isnan(share) else percent(share),
        is_small,
        scope_of(column, difference),
        (difference.value, difference.low, difference.high),
    )


def sentence(changes: Sequence[Change], depends: Sequence[str], size: float | None) -> str:
    """All changes of a step.

    Args:
        changes: one a column.
        depends: where it depends on another parameter, what the step does at each value of that; one a column.
        size: how many times as many parameters the LoRA has afterwards; None where that is the same.
    """
    better, worse, same, once, unknown = (
        [change for change in changes if change.verdict == verdict]
        for verdict in ("better", "worse", "same", "once", "open")
    )
    parts = []
    if better:
        parts.append("better " + _sized(better))
    if worse:
        parts.append("worse " + _sized(worse))
    parts += depends
    if same:
        only = not (better or worse or depends)
        why = "nothing is significant, every" if only else "not significant, for the"
        parts.append(f"{why} interval includes zero: " + ", ".join(change.text for change in same))
    if once:
        parts.append("trained once, so not called significant: " + ", ".join(change.text for change in once))
    if unknown:
        parts.append("without an interval " + ", ".join(change.text for change in unknown))
    if size is not None:
        parts.append(f"{size:.2g} times the parameters")
    return "; ".join(parts) + "."


def _sized(changes: Sequence[Change]) -> str:
    """Significant changes with their share of the way from base to real, which is spelt out once."""
    texts, unit = [], f" {WAY}"
    for change in changes:
        texts.append(change.text + (f" ({change.share}{unit})" if change.share else ""))
        unit = "" if change.share else unit
    return ", ".join(texts)


def judgement(changes: Sequence[Change], size: float | None) -> str:
    """The same in a few words, without the figures."""
    better, worse, depends = (
        [change for change in changes if change.verdict == verdict] for verdict in ("better", "worse", "depends")
    )
    parts = [f"gains {_large_first(better)}"] if better else ["gains nothing"] if worse and not depends else []
    if worse:
        parts.append(f"costs {_large_first(worse)}")
    parts += [f"{change.column} {change.value} {change.interval}" for change in depends]
    if any(change.verdict == "once" for change in changes):
        parts.append("trained once: may be chance")
    price = f"for {size:.2g}× the parameters" if size and size > 1 else ""
    return ", ".join(part for part in ("; ".join(parts) or "nothing significant", price) if part)


def _large_first(changes: Sequence[Change]) -> str:
    large, small = ([change.column for change in changes if change.is_small == is_small] for is_small in (False, True))
    return ", ".join([*large, *([f"a little {', '.join(small)}"] if small else [])])
