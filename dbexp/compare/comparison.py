"""What a reader is told of one or more sweeps, as data: `gather` works it out, results.md and the page lay it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dbexp.compare.benchmark import BenchmarkRow
from dbexp.compare.factors import Factor
from dbexp.compare.inference.estimate import EffectEstimate
from dbexp.compare.inference.multiple import Interaction
from dbexp.compare.numbers import best
from dbexp.compare.ranking import RankedRun
from dbexp.compare.recommendation import Recommendation
from dbexp.compare.references import Reference
from dbexp.compare.scores import PictureScores
from dbexp.compare.standing import Standing
from dbexp.compare.statistics import Moments
from dbexp.evaluate.columns import PAPER, RECOMMEND

MEASURES = PAPER
"""The columns that are compared."""
FRONT = ("clip_t", "dino")
"""x and y of the Pareto front, unless the objective names others: does it follow the prompt, is it the subject."""


@dataclass(frozen=True)
class Effect:
    """What a step of a parameter changes.

    Attributes:
        factor: the parameter.
        low, high: from and to.
        differences: column -> value at `high` minus value at `low`.
        interactions: column -> the significant ones that this effect is part of, surest first: the difference is then
            a mean that describes no run.
        size: how many times as many parameters the LoRA has at `high`; None where that is the same or unknown.
    """

    factor: Factor
    low: str
    high: str
    differences: Mapping[str, EffectEstimate]
    interactions: Mapping[str, tuple[Interaction, ...]]
    size: float | None = None


@dataclass(frozen=True)
class Scale:
    """What makes a number of a column large or small.

    Attributes:
        base: value of the base model, which knows nothing of the subject; the mean over runs.
        real: value of the subject's real images. Of PRES, their DINO: a class that has collapsed onto the subject.
    """

    base: float
    real: float

    def part(self, difference: float) -> float:
        """A difference as a part of the way from base to real."""
        return difference / (self.real - self.base)

    def position(self, value: float) -> float:
        """How far from base to real a value is: 0 at the base model, 1 at real images."""
        return self.part(value - self.base)


@dataclass(frozen=True)
class Comparison:
    """One or more sweeps.

    Attributes:
        sweeps: name -> folder.
        objective: what ranks.
        recommendation: which setting to take; its axes are those of the Pareto front, x and y first.
        factors: what differs.
        entries: finished runs, best first; then the others.
        standings: settings, best first.
        effects: per factor and step.
        confidence: coverage of every interval.
        pictures: the scores of every picture, which all this is worked out from.
        noise: column -> spread between runs that differ in their seed alone; empty without such.
        references: base models and real images.
        scales: column -> how far the base model is from real images; empty for columns that have no such measure.
        columns: of the table, the paper's first.
        benchmark: the table over subjects, with what others published; empty for a single subject of no benchmark.
        labels: caveats to print beside every number.
        notes: what a reader must know, as sentences.
    """

    sweeps: Mapping[str, Path]
    objective: str
    recommendation: Recommendation
    factors: tuple[Factor, ...]
    entries: tuple[RankedRun, ...]
    standings: tuple[Standing, ...]
    effects: tuple[Effect, ...]
    confidence: float
    pictures: PictureScores
    noise: Mapping[str, Moments]
    references: tuple[Reference, ...]
    scales: Mapping[str, Scale]
    columns: tuple[str, ...]
    benchmark: tuple[BenchmarkRow, ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def finished(self) -> list[RankedRun]:
        """Entries that have a report."""
        return [entry for entry in self.entries if entry.run.report]

    @property
    def best(self) -> dict[str, str | None]:
        """Column -> its best value as written; None where no run beats another."""
        names = (RECOMMEND, *self.columns)
        return {name: best(name, [entry.run.value(name) for entry in self.finished]) for name in names}

    @property
    def names(self) -> dict[Path, str]:
        """Folder -> id."""
        return {entry.run.folder: entry.id for entry in self.entries}
