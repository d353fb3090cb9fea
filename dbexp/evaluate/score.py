"""From vectors to columns: one row of the metric table (adapter on, or off) against the real images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dbexp.evaluate.features import Distances, Space
from dbexp.evaluate.functional import (
    Estimate,
    FloatArray,
    Resampling,
    copy_threshold,
    estimate_difference,
    estimate_mean,
    estimate_pairs,
    mean_to_others,
    without_token,
)
from dbexp.evaluate.metrics.base import Metric, Scores
from dbexp.evaluate.pictures import ImageFile
from dbexp.evaluate.report import Copy, ImageScores, PromptScores

IMAGE_COLUMNS = ("dino", "clip_i", "clip_t", "clip_t_token", "dino_max")
"""Columns with one value per picture."""
PROMPT_COLUMNS = (*IMAGE_COLUMNS, "copy_rate", "div")
"""Columns with one value per prompt; all but `div` weigh a prompt by its pictures."""


@dataclass(frozen=True)
class Row:
    """The files of one row of the table; null stands for a picture that is missing or black."""

    name: str
    samples: Mapping[str, list[ImageFile | None]]
    class_images: list[ImageFile | None]
    expected: int
    n_missing: int
    n_blank: int

    def files(self) -> list[ImageFile]:
        """All pictures that count."""
        return [file for files in (*self.samples.values(), self.class_images) for file in files if file]

    def counts(self) -> dict[str, Estimate]:
        """The columns that count pictures instead of scoring them."""
        return {
            "n_missing": Estimate(float(self.n_missing), n=self.expected),
            "n_blank": Estimate(float(self.n_blank), n=self.expected),
        }


class Scorer:
    """Scores rows against the real images; holds what all rows share.

    Args:
        token: left out of the prompts for `clip_t`.
        groups: prompt -> group; a prompt without entry is "other".
        real: the real images.
        dino, clip: of all pictures, under one key each.
        texts: CLIP of every prompt, with the token and without.
        lpips: distances among pictures.
        how: intervals are made.
        more: metrics that the config adds, with what they made of these pictures.
    """

    def __init__(
        self,
        token: str,
        groups: Mapping[str, str],
        real: Sequence[ImageFile],
        dino: Space,
        clip: Space,
        texts: Space,
        lpips: Distances,
        how: Resampling,
        more: Sequence[tuple[Metric, Scores]] = (),
    ) -> None:
        self.token, self.groups, self.real = token, groups, real
        self.dino, self.clip, self.texts, self.lpips, self.how = dino, clip, texts, lpips, how
        no_real = None if real else "no real images"
        few_real = None if len(real) > 1 else "fewer than two real images"
        of_dino, of_clip, of_text = dino.failure or no_real, clip.failure or no_real, clip.failure or texts.failure
        self.reasons = {
            "dino": of_dino,
            "dino_max": of_dino,
            "pres": of_dino,
            "copy_rate": of_dino or few_real,
            "dino_real": of_dino or few_real,
            "clip_i": of_clip,
            "clip_i_real": of_clip or few_real,
            "clip_t": of_text,
            "clip_t_token": of_text,
        }
        self.reasons |= {
            name: scores.reason for metric, scores in more for name in (*metric.sample_columns, *metric.class_columns)
        }
        """Column -> why no picture can have a value; null if one can."""
        self.more = more
        self.image_columns = (*IMAGE_COLUMNS, *(name for metric, _ in more for name in metric.sample_columns))
        self.threshold = math.nan if self.reasons["copy_rate"] else copy_threshold(dino.of(real))

    def images(self, row: Row) -> list[ImageScores]:
        """The columns of every sample that counts."""
        scores: list[ImageScores] = []
        for prompt, slots in row.samples.items():
            files = [file for file in slots if file]
            if not files:
                continue
            values, nearest = self._values(prompt, files)
            indices = [index for index, file in enumerate(slots) if file]
            for i, (index, file) in enumerate(zip(indices, files, strict=True)):
                of_image = {column: float(values[column][i]) for column in self.image_columns}
                scores.append(ImageScores(row.name, prompt, index, str(file.path), of_image, nearest[i]))
        return scores

    def _values(self, prompt: str, files: Sequence[ImageFile]) -> tuple[dict[str, FloatArray], list[str | None]]:
        values = {column: np.full(len(files), math.nan) for column in self.image_columns}
        nearest: list[str | None] = [None] * len(files)
        if not self.reasons["dino"]:
            similarities = self.dino.of(files) @ self.dino.of(self.real).T  # [K, R]
            values["dino"], values["dino_max"] = similarities.mean(axis=1), similarities.max(axis=1)
            nearest = [str(self.real[r].path) for r in similarities.argmax(axis=1)]
        if not self.reasons["clip_i"]:
            values["clip_i"] = (self.clip.of(files) @ self.clip.of(self.real).T).mean(axis=1)
        if not self.reasons["clip_t"]:
            plain = without_token(prompt, self.token)
            values["clip_t"] = self.clip.of(files) @ self.texts.vectors[plain]
            values["clip_t_token"] = self.clip.of(files) @ self.texts.vectors[prompt]
        for metric, scores in self.more:
            if not scores.reason:
                values |= {metric.full(name): each for name, each in scores.of_samples(prompt, files).items()}
        return values, nearest

    def prompts(self, row: Row, images: Sequence[ImageScores]) -> list[PromptScores]:
        """The columns of every prompt."""
        scores = []
        for prompt, slots in row.samples.items():
            files = [file for file in slots if file]
            of_prompt = [image.values for image in images if image.prompt == prompt]
            values = dict.fromkeys((*PROMPT_COLUMNS, *self.image_columns), math.nan)
            if of_prompt:
                values.update({column: float(np.mean([v[column] for v in of_prompt])) for column in self.image_columns})
                if not self.reasons["copy_rate"]:
                    values["copy_rate"] = float(np.mean([v["dino_max"] > self.threshold for v in of_prompt]))
            distances = self.lpips.of(files)
            if distances is not None:
                values["div"] = float(distances.mean())
            group = self.groups.get(prompt, "other")
            scores.append(PromptScores(row.name, prompt, group, len(files), values))
        return scores

    def columns(self, prompts: Sequence[PromptScores]) -> dict[str, Estimate]:
        """Means over samples (`div`: over prompts), with prompts resampled for the interval."""
        # in alphabetical order, so that the resamples do not depend on the order in which prompts are listed
        ordered = sorted(prompts, key=lambda score: score.prompt)
        pictures = [score.n for score in ordered]
        columns = {}
        for column in (*self.image_columns, "copy_rate"):
            values = [score.values[column] for score in ordered]
            reason = self.reasons[column] or "no samples"
            columns[column] = estimate_mean(values, self.how, counts=pictures, reason=reason)
        return columns | {"div": self._diversity(ordered)}

    def _diversity(self, prompts: Sequence[PromptScores]) -> Estimate:
        values = [score.values["div"] for score in prompts]
        if any(score.n > 1 and math.isnan(value) for score, value in zip(prompts, values, strict=True)):
            # a mean over the prompts before the failure would look like one over all of them
            return Estimate.missing(str(self.lpips.failure))
        reason = "no prompt has two samples" if any(score.n for score in prompts) else "no samples"
        return estimate_mean(values, self.how, reason=reason)

    def class_columns(self, row: Row, base: Row | None) -> dict[str, Estimate]:
        """`pres` and `div_prior` of a row, and its drift from `base` if one is given; class images are resampled."""
        slots, base_slots = row.class_images, base.class_images if base else []
        length = max(len(slots), len(base_slots))
        pres = self._to_real(slots, length)
        failure = self.reasons["pres"]
        columns = {"pres": estimate_mean(pres, self.how, reason=failure or "no class images")}
        if base:
            pres_base = self._to_real(base_slots, length)
            reason = failure or "no class images of the base model"
            columns["pres_base"] = estimate_mean(pres_base, self.how, reason=reason)
            delta = estimate_difference(pres, pres_base, self.how)
            gap = columns["pres"].reason or columns["pres_base"].reason
            columns["pres_delta"] = Estimate.missing(gap) if gap else delta
        for metric, scores in self.more:
            for name, values in self._of_class(metric, scores, slots).items():
                columns[name] = estimate_mean(values, self.how, reason=scores.reason or "no class images")
        files = [file for file in slots if file]
        distances = self.lpips.of(files)
        if distances is None:
            few = "fewer than two class images" if len(files) < 2 else str(self.lpips.failure)
            columns["div_prior"] = Estimate.missing(few)
        else:
            columns["div_prior"] = estimate_pairs(distances, self.how)
        return columns

    def class_images(self, row: Row) -> list[ImageScores]:
        """`pres` of every class image that counts, the real image it is nearest to, and its part of `div_prior`."""
        files = [(index, file) for index, file in enumerate(row.class_images) if file]
        if not files or self.reasons["pres"]:
            return []
        added = {
            name: by_slot
            for metric, of in self.more
            for name, by_slot in self._of_class(metric, of, row.class_images).items()
        }
        similarities = self.dino.of([file for _, file in files]) @ self.dino.of(self.real).T  # [C, R]
        distances = self.lpips.of([file for _, file in files])
        scores = []
        for i, (index, file) in enumerate(files):
            values = {"pres": float(similarities[i].mean())}
            if distances is not None:
                values["div_prior"] = float(distances[i])
            values |= {name: float(by_slot[index]) for name, by_slot in added.items()}
            nearest = self.real[int(similarities[i].argmax())]
            scores.append(ImageScores(row.name, "", index, str(file.path), values, str(nearest.path)))
        return scores

    def _of_class(self, metric: Metric, scores: Scores, slots: Sequence[ImageFile | None]) -> dict[str, FloatArray]:
        """Column -> [slots], NaN where there is no picture, or no value of any."""
        columns = {name: np.full(len(slots), math.nan) for name in metric.class_columns}
        indices = [i for i, file in enumerate(slots) if file]
        if indices and not scores.reason:
            for name, values in scores.of_class([file for file in slots if file]).items():
                columns[metric.full(name)][indices] = values
        return columns

    def added_of_real(self) -> dict[str, Estimate]:
        """The real images among themselves, in columns that the config adds."""
        return {
            metric.full(name): estimate_pairs(values, self.how)
            for metric, scores in self.more
            if not scores.reason
            for name, values in scores.of_real().items()
        }

    def _to_real(self, slots: Sequence[ImageFile | None], length: int) -> FloatArray:
        """[length] mean DINO cosine of each class image to the real images, NaN where there is no picture."""
        means = np.full(length, math.nan)
        indices = [i for i, file in enumerate(slots) if file]
        if indices and not self.reasons["pres"]:
            unit = self.dino.of([file for file in slots if file])
            means[indices] = (unit @ self.dino.of(self.real).T).mean(axis=1)
        return means

    def real_columns(self) -> dict[str, Estimate]:
        """The real images among themselves, off the diagonal; they are resampled."""
        columns = {}
        for column, space in (("dino_real", self.dino), ("clip_i_real", self.clip)):
            reason = self.reasons[column]
            if reason:
                columns[column] = Estimate.missing(reason)
            else:
                columns[column] = estimate_pairs(mean_to_others(space.of(self.real)), self.how)
        return columns

    def real_prompt_fidelity(self, prompts: Iterable[str]) -> Estimate:
        """CLIP-T of the real images under each prompt: what a run has that shows them whatever the prompt says."""
        reason = self.reasons["clip_t"] or self.reasons["clip_i"]
        if reason:
            return Estimate.missing(reason)
        mean = self.clip.of(self.real).mean(axis=0)
        texts = [self.texts.vectors[without_token(prompt, self.token)] for prompt in sorted(prompts)]
        return estimate_mean([float(mean @ text) for text in texts], self.how, reason="no samples")

    def copies(self, images: Sequence[ImageScores]) -> tuple[Copy, ...]:
        """The samples that `copy_rate` counts, nearest first."""
        copies = [
            Copy(image.path, image.nearest, image.values["dino_max"])
            for image in images
            if image.nearest is not None and image.values["dino_max"] > self.threshold
        ]
        return tuple(sorted(copies, key=lambda copy: -copy.similarity))
