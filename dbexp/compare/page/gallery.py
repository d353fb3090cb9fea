"""Which pictures a page shows: contact sheets, the best and worst of a column, copies beside what they copy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dbexp.compare.comparison import Comparison
from dbexp.compare.numbers import best, display
from dbexp.compare.ranking import RankedRun
from dbexp.evaluate.columns import column_of, heading
from dbexp.evaluate.report import ImageScores
from dbexp.runs import foreign
from dbexp.runs.folder import RunFolder

EXTREMES = ("dino", "clip_i", "clip_t", "pres")
"""Columns with a value per picture."""
_SCORES = ("dino", "clip_t", "pres")  # above the first pictures
_MOST_EXTREMES, _MOST_COPIES = 6, 24
_MOST_OPENING, _OPENING_LINES = 8, 2


@dataclass(frozen=True)
class GalleryImage:
    """A picture with what is known of it.

    Attributes:
        path: on disk.
        run: id of its run; "base" for the base model.
        prompt: that it was drawn from; empty for class images.
        number: position of its seed.
        values: column -> value.
        nearest: the photograph that it is most like by DINO, `values["dino_max"]` of 1; None where DINO is missing.
    """

    path: Path
    run: str
    prompt: str
    number: int
    values: Mapping[str, float]
    nearest: Path | None = None


@dataclass(frozen=True)
class Sheet:
    """Runs whose pictures compare one by one: same subject, prompts, seeds and base model.

    Attributes:
        title: what they share.
        prompts: rows.
        runs: ids, best first.
        base: images of the base model by prompt.
        images: id -> prompt -> images, by number.
        real: the subject's own pictures.
    """

    title: str
    prompts: tuple[str, ...]
    runs: tuple[str, ...]
    base: Mapping[str, tuple[GalleryImage, ...]]
    images: Mapping[str, Mapping[str, tuple[GalleryImage, ...]]]
    real: tuple[Path, ...]


@dataclass(frozen=True)
class CopyPair:
    """A sample beside the training picture that it copies."""

    sample: GalleryImage
    original: Path
    similarity: float


@dataclass(frozen=True)
class OpeningColumn:
    """A setting in the opening.

    Attributes:
        run: that stands for it; "base" for the base model.
        title: of it.
        cells: what is written above its pictures, a line per row of `Opening.rows`; empty where it has none.
        is_recommended: whether it is the setting to take.
    """

    run: str
    title: str
    cells: tuple[str, ...]
    is_recommended: bool = False


@dataclass(frozen=True)
class Opening:
    """The first pictures of a page: a photograph, the base model and settings on the same prompts and seeds.

    Attributes:
        rows: what the cells of a column are: parameters that differ, then scores.
        columns: the base model where it was drawn, and settings, best first.
        best: of each row, the best score of all settings as written; None for a parameter.
        lines: positions of prompts in the first sheet.
    """

    rows: tuple[str, ...]
    columns: tuple[OpeningColumn, ...]
    best: tuple[str | None, ...]
    lines: tuple[int, ...]


def opening(comparison: Comparison, sheets: Sequence[Sheet]) -> Opening | None:
    """Settings beside each other; prompts are taken by their place in the list, never by how their pictures look."""
    if not sheets:
        return None
    sheet = sheets[0]
    names = [factor for factor in comparison.factors if not factor.is_seed and not factor.is_subject]
    means = [{column: of.mean for column, of in s.moments.items()} for s in comparison.standings]
    measures = [column for column in _SCORES if any(math.isfinite(of.get(column, math.nan)) for of in means)]
    first = comparison.recommendation.first
    columns = []
    for standing, of in zip(comparison.standings, means, strict=True):
        run = next((entry.id for entry in standing.entries if entry.id in sheet.runs), None)
        if run is not None:
            settings = (standing.settings.get(factor.name, "") for factor in names)
            is_first = bool(first and names and first.settings == standing.settings)
            columns.append(OpeningColumn(run, standing.title, (*settings, *_scores(of, measures)), is_first))
    if len(columns) > _MOST_OPENING:
        columns = [*columns[: _MOST_OPENING - 1], columns[-1]]
    step = -(-len(sheet.prompts) // (_OPENING_LINES if len(columns) > 1 else 2 * _OPENING_LINES))
    if sheet.base:
        rows = next((reference.columns for reference in comparison.references if reference.key == "base"), {})
        scores = _scores({column: estimate.value for column, estimate in rows.items()}, measures)
        columns.insert(0, OpeningColumn("base", "base model", (*("" for _ in names), *scores)))
    return Opening(
        (*(factor.title for factor in names), *map(heading, measures)),
        tuple(columns),
        (*(None for _ in names), *(best(column, (of.get(column, math.nan) for of in means)) for column in measures)),
        tuple(range(0, len(sheet.prompts), step or 1)),
    )


def _scores(values: Mapping[str, float], measures: Sequence[str]) -> tuple[str, ...]:
    return tuple(display(column, values.get(column, math.nan)) for column in measures)


def sheets(comparison: Comparison) -> list[Sheet]:
    """One per set of runs that drew the same prompts from the same noise."""
    groups: dict[tuple[str, ...], list[RankedRun]] = {}
    for entry in comparison.finished:
        groups.setdefault(_noise_and_prompts(entry), []).append(entry)
    return [_sheet(entries, len(groups) > 1) for entries in groups.values()]


def _noise_and_prompts(entry: RankedRun) -> tuple[str, ...]:
    config = entry.run.config
    names = ("dataset.name", "dataset.token", "dataset.class_noun", "model.name", "model.path", "seeds.sample")
    sample = [name for name in config if name.startswith("sample.") and name != "sample.batch_size"]
    return tuple(str(config.get(name)) for name in (*names, *sorted(sample)))


def _sheet(entries: Sequence[RankedRun], several: bool) -> Sheet:
    config = entries[0].run.config
    title = str(config.get("dataset.name"))
    if several:
        title += f", {config.get('model.name')}, sample seed {config.get('seeds.sample')}"
    images = {entry.id: _by_prompt(entry, "run") for entry in entries}
    base = next(filter(None, (_by_prompt(entry, "base") for entry in entries)), {})
    prompts = dict.fromkeys(prompt for by_prompt in images.values() for prompt in by_prompt)
    return Sheet(title, tuple(prompts), tuple(images), base, images, _real(entries[0]))


def _by_prompt(entry: RankedRun, row: str) -> dict[str, tuple[GalleryImage, ...]]:
    by_prompt: dict[str, list[GalleryImage]] = {}
    assert entry.run.report is not None
    for scores in entry.run.report.images:
        if scores.row == row and _is_safe(entry, scores.path):
            by_prompt.setdefault(scores.prompt, []).append(_image(entry, scores))
    return {prompt: tuple(images) for prompt, images in by_prompt.items()}


def _image(entry: RankedRun, scores: ImageScores) -> GalleryImage:
    name = "base" if scores.row == "base" else entry.id
    nearest = _inside(entry, scores.nearest) if scores.nearest and _is_safe(entry, scores.nearest) else None
    return GalleryImage(_inside(entry, scores.path), name, scores.prompt, scores.index, scores.values, nearest)


def _inside(entry: RankedRun, path: str) -> Path:
    """A picture of a record: in the folder of its run, or one of the subject where only a name is on record."""
    is_name = len(Path(path).parts) == 1
    return (RunFolder(entry.run.folder).dataset if is_name else entry.run.folder) / path


def _is_safe(entry: RankedRun, path: str) -> bool:
    """Whether a picture of a record is in the folder of its run, links and all."""
    return foreign.within(entry.run.folder, _inside(entry, path).relative_to(entry.run.folder))


def _real(entry: RankedRun) -> tuple[Path, ...]:
    files, folder = RunFolder(entry.run.folder).dataset.glob("*"), entry.run.folder
    return tuple(sorted(path for path in files if foreign.regular(folder, path.relative_to(folder))))


def extremes(comparison: Comparison) -> dict[str, tuple[list[GalleryImage], list[GalleryImage]]]:
    """Column -> its best and its worst pictures over all runs, best and worst first."""
    ends = {}
    for column in EXTREMES:
        images = _best_first(comparison, column)
        few = min(_MOST_EXTREMES, len(images) // 2)
        if few:
            ends[column] = (images[:few], images[::-1][:few])
    return ends


def _best_first(comparison: Comparison, column: str) -> list[GalleryImage]:
    """The images of all runs that have a value of a column."""
    images = []
    for entry in comparison.finished:
        assert entry.run.report is not None
        records = entry.run.report.class_images if column == "pres" else entry.run.report.images
        images += [_image(entry, scores) for scores in records if scores.row == "run" and _is_safe(entry, scores.path)]
    images = [image for image in images if math.isfinite(image.values.get(column, math.nan))]
    return sorted(images, key=lambda image: -column_of(column).sign * image.values[column])


def copies(comparison: Comparison) -> list[CopyPair]:
    """Samples nearer to a training picture than those are to each other, nearest first; the first few of them."""
    pairs = []
    for entry in comparison.finished:
        assert entry.run.report is not None
        records = {scores.path: scores for scores in entry.run.report.images if scores.row == "run"}
        pairs += [
            CopyPair(_image(entry, records[copy.path]), _inside(entry, copy.nearest), copy.similarity)
            for copy in entry.run.report.copies
            if copy.path in records and _is_safe(entry, copy.path) and _is_safe(entry, copy.nearest)
        ]
    return sorted(pairs, key=lambda pair: -pair.similarity)[:_MOST_COPIES]


def photographs(sheet: Sheet) -> dict[Path, None]:
    """The photographs that pictures of a sheet are nearest to, in the folders of their runs, each once."""
    rows = (sheet.base, *sheet.images.values())
    images = (image for by_prompt in rows for of_prompt in by_prompt.values() for image in of_prompt)
    return dict.fromkeys(image.nearest for image in images if image.nearest)


def by_importance(
    sheets: Sequence[Sheet],
    extremes: Mapping[str, tuple[list[GalleryImage], list[GalleryImage]]],
    copies: Sequence[CopyPair],
) -> Iterator[Path]:
    """Every picture of a page: photographs, copies, extremes, then the sheets, seed by seed and best run first."""
    for sheet in sheets:
        yield from sheet.real
        yield from photographs(sheet)
    for pair in copies:
        yield from (pair.sample.path, pair.original)
    for ends in extremes.values():
        yield from (image.path for images in ends for image in images)
    rows = [(sheet.base, *(sheet.images[name] for name in sheet.runs)) for sheet in sheets]
    most = max((len(images) for row in rows for by_prompt in row[1:] for images in by_prompt.values()), default=0)
    for number in range(most):
        for row in rows:
            for by_prompt in row:
                yield from (images[number].path for images in by_prompt.values() if number < len(images))
