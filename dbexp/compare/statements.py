"""What the data support, in sentences: which run is best, what each swept parameter changes, what nobody can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dbexp.compare.comparison import Comparison, Effect, Scale, Standing
from dbexp.compare.factors import Factor
from dbexp.compare.numbers import display, interval, percent, signed
from dbexp.compare.statistics import Difference, Moments
from dbexp.core.errors import count, listed
from dbexp.evaluate.columns import COLUMNS

SMALL = 0.05
"""A significant difference is called a little below this part of the way from the base model to real images."""
WAY = "of the way from base to real"


@dataclass(frozen=True)
class Change:
    """One column of an effect, as written.

    Attributes:
        column: its title.
        value, interval: of the difference; the interval is empty where there is none.
        verdict: better or worse, where the interval excludes zero; same, where it does not; open, without one.
        share: the difference as a part of the way from base to real; empty where there is no such way.
        is_small: whether that part is below `SMALL`, or, for a column without it, whether the spread between seeds is
            larger than the difference.
    """

    column: str
    value: str
    interval: str
    verdict: str
    share: str = ""
    is_small: bool = False

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
    sentences = [_best(comparison)] if comparison.standings else []
    for factor in comparison.factors:
        steps = [effect for effect in comparison.effects if effect.factor == factor]
        sentences += [_effect(effect, comparison) for effect in steps] or _no_effect(factor)
    if comparison.noise:
        spread = [
            Change(COLUMNS[column].title, f"± {display(column, moments.deviation)}", "", "spread")
            for column, moments in comparison.noise.items()
        ]
        text = "runs that differ in their seed alone have a standard deviation of "
        text += ", ".join(f"{change.column} {change.value.removeprefix('± ')}" for change in spread) + "."
        n = max(moments.n for moments in comparison.noise.values())
        sentences.append(Statement("Chance", text, tuple(spread), "how far seeds alone move a run", count(n, "run")))
    return sentences


def _best(comparison: Comparison) -> Statement:
    column, best = comparison.objective, comparison.standings[0]
    moments = best.moments.get(column)
    if moments is None or math.isnan(moments.mean):
        return Statement(f"Best by {COLUMNS[column].title}", "no run has a value.")
    value = display(column, moments.mean)
    if len(best.entries) > 1:
        runs = f"mean of runs {listed([entry.id for entry in best.entries])}"
    else:
        estimate = best.entries[0].run.report
        ends = estimate.rows["run"][column] if estimate else None
        value = " ".join(part for part in (value, ends and interval(column, ends.low, ends.high)) if part)
        runs = f"run {best.entries[0].id}"
    scale = comparison.scales.get(column)
    if scale:
        value += f", {percent(scale.position(moments.mean)).lstrip('+')} {WAY}"
    if comparison.factors:
        value += f" ({runs})"
    return Statement(
        f"Best by {COLUMNS[column].title}",
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
    verdict = "it cannot be told" if rivals == [second] else f"{len(rivals)} settings cannot be told"
    return f" Next: {second.title}, {gap}; {verdict} from the best on these prompts."


def is_tied(standing: Standing) -> bool:
    """Whether a setting's paired difference from the best may be zero."""
    return standing.behind is not None and not standing.behind.is_significant


def change(column: str, difference: Difference, scale: Scale | None = None, noise: Moments | None = None) -> Change:
    """A difference as written, whether it is good news, and whether it is large.

    Args:
        column: of the metric table.
        difference: between two values of a parameter.
        scale: of the column, if it has one.
        noise: spread of the column between seeds, if it is known.
    """
    estimate = difference.estimate
    improves = (estimate.value > 0) == (COLUMNS[column].better == "higher")
    verdict = "better" if improves else "worse"
    if not difference.is_significant:
        verdict = "open" if math.isnan(estimate.low) else "same"
    share = math.nan if scale is None else scale.part(estimate.value)
    is_small = abs(share) < SMALL  # False for NaN
    if scale is None and noise is not None:
        is_small = abs(estimate.value) < noise.deviation
    return Change(
        COLUMNS[column].title,
        signed(column, estimate.value),
        interval(column, estimate.low, estimate.high),
        verdict,
        "" if math.isnan(share) else percent(share),
        is_small,
    )


def _effect(effect: Effect, comparison: Comparison) -> Statement:
    changes = [
        change(column, difference, comparison.scales.get(column), comparison.noise.get(column))
        for column, difference in effect.differences.items()
        if not math.isnan(difference.estimate.value)
    ]
    better, worse, same, unknown = (
        [change for change in changes if change.verdict == verdict] for verdict in ("better", "worse", "same", "open")
    )
    parts = []
    if better:
        parts.append("better " + _sized(better))
    if worse:
        parts.append("worse " + _sized(worse))
    if same and (better or worse):
        parts.append("not significant, for the interval includes zero: " + ", ".join(change.text for change in same))
    elif same:
        parts.append(
            "nothing is significant, every interval includes zero: " + ", ".join(change.text for change in same)
        )
    if unknown:
        parts.append("without an interval " + ", ".join(change.text for change in unknown))
    if effect.size is not None:
        parts.append(f"{effect.size:.2g} times the parameters")
    text = "; ".join(parts) + "." if parts else "the runs share no score."
    step = f"{effect.factor.name} {effect.low} → {effect.high}"
    return Statement(step, text, tuple(changes), _judgement(better, worse, effect.size), _basis(effect))


def _sized(changes: Sequence[Change]) -> str:
    """Significant changes with their share of the way from base to real, which is spelt out once."""
    texts, unit = [], f" {WAY}"
    for change in changes:
        texts.append(change.text + (f" ({change.share}{unit})" if change.share else ""))
        unit = "" if change.share else unit
    return ", ".join(texts)


def _judgement(better: Sequence[Change], worse: Sequence[Change], size: float | None) -> str:
    price = f"for {size:.2g}× the parameters" if size and size > 1 else ""
    parts = [f"gains {_large_first(better)}" if better else "gains nothing"]
    if worse:
        parts.append(f"costs {_large_first(worse)}")
    judgement = "; ".join(parts) if better or worse else "nothing significant"
    return ", ".join(part for part in (judgement, price) if part)


def _large_first(changes: Sequence[Change]) -> str:
    large, small = ([change.column for change in changes if change.is_small == is_small] for is_small in (False, True))
    return ", ".join([*large, *([f"a little {', '.join(small)}"] if small else [])])


def _basis(effect: Effect) -> str:
    """Pairs of runs, pictures, and whether the pairs agree where something is significant."""
    differences = [difference for difference in effect.differences.values() if difference.runs]
    if not differences:
        return ""
    runs = max(difference.runs for difference in differences)
    pictures = max(difference.estimate.n for difference in differences)
    parts = [count(runs, "pair") + " of runs", count(pictures, "pair") + " of pictures"]
    disputed = [COLUMNS[c].title for c, d in effect.differences.items() if d.is_significant and d.agreeing < d.runs]
    if disputed:
        parts.append(f"pairs of runs disagree in {', '.join(disputed)}")
    if runs == 1:
        parts.append("one training each, so chance in training is not covered")
    return "; ".join(parts)


def _no_effect(factor: Factor) -> list[Statement]:
    if factor.is_seed:
        return []
    if factor.is_subject:
        text = "other subjects have other prompts, so pictures make no pairs; see the means per value below."
    elif factor.is_measure:
        text = "changes how scores are made, so they cannot be compared."
    else:
        text = "no two finished runs differ in it alone, so its effect cannot be told."
    return [Statement(factor.name, text, verdict="not comparable")]
