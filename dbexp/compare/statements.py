"""What the data support, in sentences: which run is best, what each swept parameter changes, what nobody can tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dbexp.compare.changes import WAY, Change, change, judgement, scope_of, sentence
from dbexp.compare.comparison import Comparison, Effect
from dbexp.compare.effects import MOST_LEVELS
from dbexp.compare.factors import Factor
from dbexp.compare.inference.estimate import EffectEstimate
from dbexp.compare.numbers import display, interval, percent, signed
from dbexp.compare.recommendation import Recommendation
from dbexp.compare.scores import CLASS_IMAGE
from dbexp.compare.standing import Standing
from dbexp.compare.statistics import by_level
from dbexp.core.errors import count, listed
from dbexp.evaluate.columns import RECOMMEND, column_of

MORE_SEEDS = "seed=1,2,3"
LEADS = ("best", "recommended", "front")
"""Verdicts of the sentences that come first."""
_NAMED = 4
"""So many settings are named one by one."""


@dataclass(frozen=True)
class Statement:
    """A sentence, and the numbers in it.

    Attributes:
        subject: what it is about: the best run, or a parameter and its step.
        text: the rest of the sentence.
        changes: what a page can show as a row of figures; their words are part of `text` already.
        verdict: the judgement in a few words.
        basis: what it rests on, and what it speaks of.
        cases: where effects differ: a value of the other parameter, and the changes there.
    """

    subject: str
    text: str
    changes: tuple[Change, ...] = ()
    verdict: str = ""
    basis: str = ""
    cases: tuple[tuple[str, tuple[Change, ...]], ...] = ()

    @property
    def sentence(self) -> str:
        """In full."""
        return " ".join(part for part in (f"{self.subject}:", self.text, self.basis and f"({self.basis})") if part)


def statements(comparison: Comparison) -> list[Statement]:
    """The best first and what to take, then a statement per step of each parameter, then chance."""
    sentences = [*_leads(comparison)] if comparison.standings else []
    for factor in comparison.factors:
        steps = [effect for effect in comparison.effects if effect.factor == factor]
        sentences += [_effect(effect, comparison) for effect in steps] or _no_effect(factor, comparison)
    return sentences + _chance(comparison)


def _chance(comparison: Comparison) -> list[Statement]:
    if not comparison.noise:
        text = "every setting was trained once, so no difference is called significant; "
        text += f"the same sweep with {MORE_SEEDS} tells effects from luck."
        return [Statement("Chance", text)] if len(comparison.standings) > 1 else []
    spread = [
        Change(column_of(column).title, f"± {display(column, moments.deviation)}", "", "spread")
        for column, moments in comparison.noise.items()
    ]
    text = "runs that differ in their seed alone have a standard deviation of "
    text += ", ".join(f"{change.column} {change.value.removeprefix('± ')}" for change in spread) + "."
    n = max(moments.n for moments in comparison.noise.values())
    return [Statement("Chance", text, tuple(spread), "how far seeds alone move a run", count(n, "run"))]


def _leads(comparison: Comparison) -> Iterator[Statement]:
    if comparison.objective != RECOMMEND:
        yield _best(comparison)
    yield _recommended(comparison)
    if len(comparison.standings) > 1:
        yield _front(comparison.recommendation)


def _recommended(comparison: Comparison) -> Statement:
    of = comparison.recommendation
    if of.first is None:
        text = f"none, for it needs {listed(of.lacks)}." if of.lacks else "none, for no run has all of its columns."
        return Statement("Recommendation", text, verdict="recommended")
    score, first = column_of(RECOMMEND).title, of.first
    share = {name: percent(part).lstrip("+") for name, part in of.shares[0].items()}
    what = f"{share['subject']} of the subject gained, {share['prompt']} of the prompt"
    what += f" and {share['class']} of the class kept"
    runs = f", {_members(first)}" if comparison.factors else ""
    text = f"{first.title} with {score} {display(RECOMMEND, of.score)}: {what}{runs}."
    text += _rivals(of.standings, RECOMMEND)
    if of.not_told_apart:
        text += f" Not told apart from it: {_titles(of.not_told_apart)}."
    return Statement("Recommendation", text + _collapsed(of), verdict="recommended", basis=of.rule)


def _collapsed(of: Recommendation) -> str:
    """What the setting with the highest DINO pays for it, where that is another one."""
    means = [standing.moments["dino"].mean if "dino" in standing.moments else math.nan for standing in of.standings]
    highest = max(range(len(means)), key=lambda number: -math.inf if math.isnan(means[number]) else means[number])
    if highest == 0:
        return ""
    kept = {name: percent(of.shares[highest][name]).lstrip("+") for name in ("prompt", "class")}
    value = f"{column_of('dino').title}, {display('dino', means[highest])}"
    setting = of.standings[highest].title
    return f" The highest {value}, has {setting}: {kept['prompt']} of the prompt and {kept['class']} of the class kept."


def _front(of: Recommendation) -> Statement:
    titles = listed([column_of(axis).title for axis in of.axes])
    text = f"in {titles} no setting beats {_titles(of.front)}."
    if of.knee:
        text += f" Its knee, farthest beyond the line between its ends (Das, 1999), is {of.knee.title}."
    elif len(of.axes) == 2:
        text += " It has no knee: no setting lies beyond the line between its ends."
    if all(len(standing.entries) == 1 for standing in of.front):
        text += f" Each was trained once: {MORE_SEEDS} makes them means."
    return Statement("Pareto front", text, verdict="front")


def _titles(standings: Sequence[Standing]) -> str:
    return listed([standing.title for standing in standings], _NAMED) or "any"


def _members(standing: Standing) -> str:
    if len(standing.entries) > 1:
        return f"mean of runs {listed([entry.id for entry in standing.entries])}"
    return f"run {standing.entries[0].id}"


def _best(comparison: Comparison) -> Statement:
    column, best = comparison.objective, comparison.standings[0]
    moments = best.moments.get(column)
    if moments is None or math.isnan(moments.mean):
        return Statement(f"Best by {column_of(column).title}", "no run has a value.")
    value = display(column, moments.mean)
    runs = _members(best)
    if len(best.entries) == 1 and (report := best.entries[0].run.report) and column in report.rows["run"]:
        ends = report.rows["run"][column]
        value = " ".join(part for part in (value, interval(column, ends.low, ends.high)) if part)
        runs += ", its interval for other prompts alone"
    scale = comparison.scales.get(column)
    if scale:
        value += f", {percent(scale.position(moments.mean)).lstrip('+')} {WAY}"
    if comparison.factors:
        value += f" ({runs})"
    return Statement(
        f"Best by {column_of(column).title}",
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
    gap = f"{signed(column, second.behind.value)} {interval(column, second.behind.low, second.behind.high)}".strip()
    basis = scope_of(column, second.behind)
    if len(standings) > 2:
        basis += f", {len(standings)} settings compared at once"
    distances = [other.behind for other in standings[1:] if other.behind is not None]
    ties = sum(not distance.is_significant for distance in distances)
    if not ties:
        shares = "" if len(distances) == len(standings) - 1 else " that shares its pictures"
        verdict = f"every other{shares} is significantly behind"
    elif all(distance.counts.seeds == 1 for distance in distances):
        verdict = f"trained once, nothing can be called behind: add {MORE_SEEDS}"
    else:
        verdict = "it" if ties == 1 and is_tied(second) else count(ties, "setting")
        verdict += " cannot be told from the best"
    return f" Next: {second.title}, {gap} {basis}; {verdict}."


def is_tied(standing: Standing) -> bool:
    """Whether a setting's paired difference from the best may be zero."""
    return standing.behind is not None and not standing.behind.is_significant


def _effect(effect: Effect, comparison: Comparison) -> Statement:
    def to_change(column: str, difference: EffectEstimate) -> Change:
        return change(column, difference, comparison.scales.get(column), comparison.noise.get(column))

    titles = {factor.name: factor.title for factor in comparison.factors}
    changes = {column: to_change(column, difference) for column, difference in effect.differences.items()}
    cases: dict[str, list[Change]] = {}
    depends = []
    for column, interactions in effect.interactions.items():
        names = listed(list(dict.fromkeys(titles[test.other] for test in interactions)))
        changes[column] = Change(column_of(column).title, "depends", f"on {names}", "depends")
        sides = []
        for test in interactions:
            for level, estimate in ((test.other_low, test.at_low), (test.other_high, test.at_high)):
                where, side = f"{titles[test.other]}={level}", to_change(column, estimate)
                cases.setdefault(where, []).append(side)
                sides.append(f"{side.value} {side.interval} at {where}")
        depends.append(f"{changes[column].text}: {', '.join(sides)}")
    text = sentence([*changes.values()], depends, effect.size)
    step = f"{effect.factor.name} {effect.low} → {effect.high}"
    return Statement(
        step,
        text,
        tuple(changes.values()),
        judgement([*changes.values()], effect.size),
        _basis(effect, comparison.objective),
        tuple((where, tuple(at)) for where, at in cases.items()),
    )


def _basis(effect: Effect, objective: str) -> str:
    """Pairs, whether those of runs agree where something is significant; what it speaks of, what a seed would buy."""
    differences = effect.differences
    parts = [
        count(max(difference.counts.runs for difference in differences.values()), "pair") + " of runs",
        count(max(difference.counts.pictures for difference in differences.values()), "pair") + " of pictures",
    ]
    means = {column: mean for column, mean in differences.items() if mean.is_significant}
    disagreements = [
        column_of(column).title
        for column, mean in means.items()
        if mean.agreeing < mean.counts.runs and column not in effect.interactions
    ]
    if disagreements:
        parts.append(f"pairs of runs disagree in {', '.join(disagreements)}")
    column = objective if objective in differences else next(iter(differences))
    parts.append(scope_of(column, differences[column]))
    if "pres" in differences and column != "pres":
        parts.append(f"PRES: {count(differences['pres'].counts.prompts, CLASS_IMAGE)} in place of prompts")
    return "; ".join([*parts, *_advice(column, differences[column])])


def _advice(column: str, difference: EffectEstimate) -> list[str]:
    seeds, width = difference.counts.seeds, difference.half_width
    if seeds == 1:
        return [f"add {MORE_SEEDS} to tell it from chance"]
    more = difference.half_width_with(3)
    if seeds > 2 or math.isnan(more):
        return []
    title = column_of(column).title
    return [f"a third seed would make {title} ±{display(column, width)} about ±{display(column, more)}"]


def _no_effect(factor: Factor, comparison: Comparison) -> list[Statement]:
    if factor.is_seed:
        return []
    if factor.is_subject:
        return [_subjects(factor, comparison)]
    text = "no two finished runs differ in it alone and share prompts, so its effect cannot be told."
    if len(factor.levels) > MOST_LEVELS:
        text = f"has {len(factor.levels)} values, too many to compare step by step; the plots of the page show them."
    if factor.is_measure:
        text = "changes how scores are made, so they cannot be compared."
    return [Statement(factor.name, text, verdict="not comparable")]


def _subjects(factor: Factor, comparison: Comparison) -> Statement:
    """How subjects fare; what else is swept is judged over all of them."""
    column, runs = comparison.objective, comparison.finished
    means = by_level([run.settings[factor.name] for run in runs], [run.run.value(column) for run in runs])
    known = [level for level in means if not math.isnan(means[level].mean)]
    order = sorted(known, key=lambda level: means[level].mean)
    text = f"effects are means over {count(len(means), 'subject')}, which count alike."
    if len(order) > 1:
        low, high = (f"{display(column, means[level].mean)} ({level})" for level in (order[0], order[-1]))
        text += f" Mean {column_of(column).title} from {low} to {high}."
    return Statement(factor.name, text, verdict="subjects")
