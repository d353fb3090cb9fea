"""What the data support, in sentences: which run is best, what each swept parameter changes, what nobody can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dbexp.compare.comparison import MEASURES, Comparison, Effect, Standing
from dbexp.compare.factors import Factor
from dbexp.compare.numbers import interval, signed, written
from dbexp.compare.statistics import Difference
from dbexp.metrics import COLUMNS
from dbexp.table import TITLES


@dataclass(frozen=True)
class Change:
    """One column of an effect, as written.

    Attributes:
        column: its title.
        value, interval: of the difference; the interval is empty where there is none.
        verdict: better, worse or same (nothing significant).
    """

    column: str
    value: str
    interval: str
    verdict: str

    @property
    def text(self) -> str:
        """As in a sentence."""
        return " ".join(part for part in (self.column, self.value, self.interval) if part)


@dataclass(frozen=True)
class Statement:
    """A sentence, and the numbers in it.

    Attributes:
        subject: what it is about: the best run, or a parameter and its step.
        text: the rest of the sentence.
        changes: what a page can show as a row of figures; their words are part of `text` already.
        verdict: the judgement in a few words.
        basis: what it rests on.
    """

    subject: str
    text: str
    changes: tuple[Change, ...] = ()
    verdict: str = ""
    basis: str = ""

    @property
    def sentence(self) -> str:
        """In full."""
        return " ".join(part for part in (f"{self.subject}:", self.text, self.basis and f"({self.basis})") if part)


def statements(comparison: Comparison) -> list[Statement]:
    """The best first, then a statement per step of each parameter, then chance."""
    said = [_best(comparison)] if comparison.standings else []
    for factor in comparison.factors:
        own = [effect for effect in comparison.effects if effect.factor == factor]
        said += [_effect(effect) for effect in own] or _no_effect(comparison, factor)
    if comparison.noise:
        spread = ", ".join(
            f"{TITLES[column]} {written(column, moments.deviation)}" for column, moments in comparison.noise.items()
        )
        n = max(moments.n for moments in comparison.noise.values())
        text = f"runs that differ in their seed alone have a standard deviation of {spread}."
        said.append(Statement("Chance", text, basis=_count(n, "run")))
    return said


def _best(comparison: Comparison) -> Statement:
    column, best = comparison.objective, comparison.standings[0]
    moments = best.moments.get(column)
    if moments is None or math.isnan(moments.mean):
        return Statement(f"Best by {TITLES[column]}", "no run has a value.")
    value = written(column, moments.mean)
    if len(best.entries) > 1:
        value += f", the mean of {len(best.entries)} seeds"
    else:
        estimate = best.entries[0].run.report
        ends = estimate.rows["run"][column] if estimate else None
        value = " ".join(part for part in (value, ends and interval(column, ends.low, ends.high)) if part)
    return Statement(
        f"Best by {TITLES[column]}",
        f"{best.title} with {value}.{_rivals(comparison.standings, column)}",
        verdict="best",
    )


def _rivals(standings: Sequence[Standing], column: str) -> str:
    """How far the next one is behind, and how many cannot be told from the best."""
    if len(standings) < 2:
        return ""
    second = standings[1]
    if second.behind is None:
        return f" Next: {second.title}."
    estimate = second.behind.estimate
    gap = f"{signed(column, estimate.value)} {interval(column, estimate.low, estimate.high)}"
    rivals = [other for other in standings[1:] if is_tied(other)]
    if not rivals:
        return f" Next: {second.title}, {gap}; every other is significantly behind."
    count = "it cannot be told" if rivals == [second] else f"{len(rivals)} settings cannot be told"
    return f" Next: {second.title}, {gap}; {count} from the best on these prompts."


def is_tied(standing: Standing) -> bool:
    """Whether a setting's paired difference from the best may be zero."""
    return standing.behind is not None and not standing.behind.is_significant


def change(column: str, difference: Difference) -> Change:
    """A difference as written, and whether it is good news."""
    estimate = difference.estimate
    verdict = "same"
    if difference.is_significant:
        improves = (estimate.value > 0) == (COLUMNS[column].better == "higher")
        verdict = "better" if improves else "worse"
    ends = interval(column, estimate.low, estimate.high)
    return Change(TITLES[column], signed(column, estimate.value), ends, verdict)


def _effect(effect: Effect) -> Statement:
    found = {column: change(column, effect.differences[column]) for column in MEASURES}
    there = {column: one for column, one in found.items() if not math.isnan(effect.differences[column].estimate.value)}
    better, worse, same = (
        [one for one in there.values() if one.verdict == verdict] for verdict in ("better", "worse", "same")
    )
    parts = []
    if better:
        parts.append("better " + ", ".join(one.text for one in better))
    if worse:
        parts.append("worse " + ", ".join(one.text for one in worse))
    if same and (better or worse):
        parts.append("no significant difference in " + ", ".join(one.text for one in same))
    elif same:
        parts.append("nothing is significant: " + ", ".join(one.text for one in same))
    if effect.size is not None:
        parts.append(f"{effect.size:.2g} times the parameters")
    text = "; ".join(parts) + "." if parts else "the runs share no score."
    step = f"{effect.factor.name} {effect.low} → {effect.high}"
    return Statement(step, text, tuple(there.values()), _judgement(better, worse, effect.size), _basis(effect))


def _judgement(better: Sequence[Change], worse: Sequence[Change], size: float | None) -> str:
    gains, costs = (", ".join(one.column for one in changes) for changes in (better, worse))
    if gains and costs:
        return f"gains {gains}; costs {costs}"
    if gains:
        return f"gains {gains}"
    if costs:
        return f"costs {costs}, gains nothing"
    return "nothing significant" + (f", at {size:.2g}× the parameters" if size and size > 1 else "")


def _basis(effect: Effect) -> str:
    """Pairs of runs, pictures, and whether the pairs agree where something is significant."""
    told = [one for one in effect.differences.values() if one.runs]
    if not told:
        return ""
    runs = max(one.runs for one in told)
    parts = [_count(runs, "pair") + " of runs", _count(max(one.estimate.n for one in told), "pair") + " of pictures"]
    torn = [TITLES[c] for c, one in effect.differences.items() if one.is_significant and one.agreeing < one.runs]
    if torn:
        parts.append(f"pairs of runs disagree in {', '.join(torn)}")
    if runs == 1:
        parts.append("one training each, so chance in training is not covered")
    return "; ".join(parts)


def _no_effect(comparison: Comparison, factor: Factor) -> list[Statement]:
    if factor.is_seed:
        return []
    if factor.is_subject:
        text = "other subjects have other prompts, so pictures make no pairs; see the means per value below."
    elif factor.is_measure:
        text = "changes how scores are made, so they cannot be compared."
    else:
        text = "no two finished runs differ in it alone, so its effect cannot be told."
    return [Statement(factor.name, text, verdict="not comparable")]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")
