"""The scores of every picture of some runs, as columns: what effects are worked out from, and pictures.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from dbexp.compare.factors import Factor, words
from dbexp.compare.numbers import exact
from dbexp.compare.ranking import RankedRun
from dbexp.evaluate.columns import in_order
from dbexp.evaluate.objective import slopes as slopes_of
from dbexp.evaluate.objective import value
from dbexp.evaluate.report import Report

PICTURES = "pictures.csv"
CLASS_IMAGE = "class image"
_OF_PROMPTS = ("div", "copy_rate")  # columns of prompts as a whole
PictureKey: TypeAlias = tuple[str, int]
"""Prompt and number: what two runs of one subject and seed share of a picture."""


@dataclass(frozen=True)
class PictureScores:
    """A row per picture, runs in the order of their numbers.

    Attributes:
        parameters: the swept ones, subject and seeds not among them.
        subjects: id of a run -> its subject.
        labels: column -> as written: job, subject, the parameters, seed, prompt, image. A picture of the class stands
            for a prompt of its own; what prompts have as a whole stands in their first picture.
        values: metric -> value, NaN for none; nine significant digits, as in the file.
    """

    parameters: tuple[str, ...]
    subjects: Mapping[str, str]
    labels: Mapping[str, NDArray[np.str_]]
    values: Mapping[str, NDArray[np.float64]]

    def of(self, metric: str) -> dict[str, NDArray[np.str_] | NDArray[np.float64]] | None:
        """Columns as `dbexp.effect` takes them; None where no picture has the metric."""
        values = self.values.get(metric, np.empty(0))
        rows = np.flatnonzero(np.isfinite(values))
        if not len(rows):
            return None
        return {name: column[rows] for name, column in self.labels.items() if name != "job"} | {"value": values[rows]}

    def csv(self) -> str:
        """The file; a metric that a picture lacks is empty."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow([*self.labels, *self.values])
        writer.writerows(
            [*labels, *map(exact, values)]
            for labels, values in zip(zip(*self.labels.values(), strict=True), zip(*self.values.values(), strict=True),
                                      strict=True)
        )  # fmt: skip
        return buffer.getvalue()


def picture_scores(
    finished: Sequence[RankedRun], swept: Sequence[Factor], objectives: Sequence[str] = ()
) -> PictureScores:
    """The pictures of finished runs.

    Args:
        finished: any order.
        swept: what differs between them.
        objectives: get a column too, if they are none of the table: see `_shares_of_objective`.
    """
    parameters = tuple(f.name for f in swept if not (f.is_seed or f.is_subject))
    subjects = _subjects(finished, swept)
    rows: list[dict[str, str]] = []
    scores: list[Mapping[str, float]] = []
    for entry in sorted(finished, key=lambda entry: (entry.run.folder.parent, entry.run.number)):
        run = {"job": entry.id, "subject": subjects[entry.id]}
        run |= {name: entry.settings[name] for name in parameters}
        run["seed"], sample_seed = _seeds(entry, swept)
        assert entry.run.report is not None
        pictures = _pictures(entry.run.report)
        for objective in objectives:
            _shares_of_objective(objective, entry.run.report, pictures)
        for (prompt, number), values in pictures.items():
            rows.append(run | {"prompt": prompt, "image": f"{sample_seed}{number}"})
            scores.append(values)
    names = ("job", "subject", *parameters, "seed", "prompt", "image")
    metrics = in_order(metric for values in scores for metric in values)
    metrics += [name for name in objectives if name not in metrics and any(name in values for values in scores)]
    return PictureScores(
        parameters,
        subjects,
        {name: np.array([row[name] for row in rows], dtype=np.str_) for name in names},
        {metric: np.array([_rounded(values.get(metric, math.nan)) for values in scores]) for metric in metrics},
    )


def _shares_of_objective(objective: str, report: Report, pictures: dict[PictureKey, dict[str, float]]) -> None:
    """Give the samples of a run their shares of its objective, whose mean over prompts is the objective.

    A picture's share is the value of the run, plus what each column of the picture is above the run's mean, times how
    fast the objective rises with that column there: the influence values of the infinitesimal jackknife (Jaeckel, Bell
    Laboratories memorandum 72-1215-11, 1972; Efron, The Jackknife, the Bootstrap and Other Resampling Plans, 1982,
    chapter 6). A column that samples lack, such as PRES, is the run's own in all of them: it moves with the seed alone.
    """
    whole, slopes = value(report.rows, objective), slopes_of(report.rows, objective)
    if math.isnan(whole) or not slopes:
        return
    means = {name: estimate.value for name, estimate in report.rows["run"].items()}
    of_prompt = {scores.prompt: scores.values for scores in report.prompts if scores.row == "run"}
    for (prompt, _), values in pictures.items():
        if prompt in of_prompt:
            known = {**of_prompt[prompt], **{k: v for k, v in values.items() if k not in _OF_PROMPTS}}
            values[objective] = whole + math.fsum(
                slope * (known[name] - means[name]) for name, slope in slopes.items() if name in known
            )


def _pictures(report: Report) -> dict[PictureKey, dict[str, float]]:
    """Prompts' pictures, adapter on, then those of the class."""
    images = {(image.prompt, image.index): dict(image.values) for image in report.images if image.row == "run"}
    for scores in report.prompts:
        if scores.row == "run":
            whole = {name: value for name, value in scores.values.items() if name in _OF_PROMPTS}
            images.setdefault((scores.prompt, 0), {}).update(whole)
    of_class = [image for image in report.class_images if image.row == "run"]
    return images | {(f"{CLASS_IMAGE} {image.index}", 0): dict(image.values) for image in of_class}


def _subjects(finished: Sequence[RankedRun], swept: Sequence[Factor]) -> dict[str, str]:
    """Id of a run -> name of its subject, with what else tells it from another of that name."""
    factors = [factor for factor in swept if factor.is_subject and factor.name != "dataset.name"]
    names = {entry.id: str(entry.run.config.get("dataset.name")) for entry in finished}
    rest = {entry.id: words(entry.settings, factors) for entry in finished}
    variants: dict[str, set[str]] = {}
    for run, name in names.items():
        variants.setdefault(name, set()).add(rest[run])
    return {run: f"{name} {rest[run]}" if len(variants[name]) > 1 else name for run, name in names.items()}


def _seeds(entry: RankedRun, swept: Sequence[Factor]) -> tuple[str, str]:
    """The training seed, and what stands before the number of a picture.

    Runs that differ in the noise of their samples alone are one training with more pictures.
    """
    seeds = [factor for factor in swept if factor.is_seed]
    training = [factor for factor in seeds if factor.name != "seeds.sample"]
    label = words(entry.settings, training) if len(training) > 1 else "".join(entry.settings[f.name] for f in training)
    of_sample = "".join(f"{entry.settings[factor.name]}." for factor in seeds if factor not in training)
    return label or str(entry.run.config.get("seed")), of_sample


def _rounded(value: float) -> float:
    return float(exact(value) or math.nan)
