"""Which pictures a page shows: contact sheets, the best and worst of a column, copies beside what they copy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dbexp.compare.comparison import Comparison, RankedRun
from dbexp.evaluate.columns import COLUMNS
from dbexp.evaluate.report import ImageScores
from dbexp.runs.folder import RunFolder

EXTREMES = ("dino", "clip_i", "clip_t", "pres")
"""Columns with a value per picture."""
_SHOWN, _COPIES = 6, 24


@dataclass(frozen=True)
class Shot:
    """A picture with what is known of it.

    Attributes:
        path: on disk.
        run: id of its run; "base" for the base model.
        prompt: that it was drawn from; empty for class images.
        number: position of its seed.
        values: column -> value.
    """

    path: Path
    run: str
    prompt: str
    number: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Sheet:
    """Runs whose pictures compare one by one: same subject, prompts, seeds and base model.

    Attributes:
        title: what they share.
        prompts: rows.
        runs: ids, best first.
        base: shots of the base model by prompt.
        shots: id -> prompt -> shots, by number.
        real: the subject's own pictures.
    """

    title: str
    prompts: tuple[str, ...]
    runs: tuple[str, ...]
    base: Mapping[str, tuple[Shot, ...]]
    shots: Mapping[str, Mapping[str, tuple[Shot, ...]]]
    real: tuple[Path, ...]


@dataclass(frozen=True)
class CopyPair:
    """A sample beside the training picture that it copies."""

    shot: Shot
    original: Path
    similarity: float


def sheets(comparison: Comparison) -> list[Sheet]:
    """One per set of runs that drew the same prompts from the same noise."""
    gathered: dict[tuple[str, ...], list[RankedRun]] = {}
    for entry in comparison.finished:
        gathered.setdefault(_shared(entry), []).append(entry)
    return [_sheet(entries, len(gathered) > 1) for entries in gathered.values()]


def _shared(entry: RankedRun) -> tuple[str, ...]:
    config = entry.run.config
    names = ("dataset.name", "dataset.token", "dataset.class_noun", "model.name", "model.path", "seeds.sample")
    drawn = [name for name in config if name.startswith("sample.") and name != "sample.batch_size"]
    return tuple(str(config.get(name)) for name in (*names, *sorted(drawn)))


def _sheet(entries: Sequence[RankedRun], several: bool) -> Sheet:
    config = entries[0].run.config
    title = str(config.get("dataset.name"))
    if several:
        title += f", {config.get('model.name')}, sample seed {config.get('seeds.sample')}"
    shots = {entry.id: _by_prompt(entry, "run") for entry in entries}
    base = next((found for entry in entries if (found := _by_prompt(entry, "base"))), {})
    prompts = dict.fromkeys(prompt for own in shots.values() for prompt in own)
    return Sheet(title, tuple(prompts), tuple(shots), base, shots, _real(entries[0]))


def _by_prompt(entry: RankedRun, row: str) -> dict[str, tuple[Shot, ...]]:
    found: dict[str, list[Shot]] = {}
    assert entry.run.report is not None
    for scores in entry.run.report.images:
        if scores.row == row:
            found.setdefault(scores.prompt, []).append(_shot(entry, scores))
    return {prompt: tuple(shots) for prompt, shots in found.items()}


def _shot(entry: RankedRun, scores: ImageScores) -> Shot:
    name = "base" if scores.row == "base" else entry.id
    return Shot(_inside(entry, scores.path), name, scores.prompt, scores.index, scores.values)


def _inside(entry: RankedRun, path: str) -> Path:
    """A picture of a record: in the folder of its run, or one of the subject where only a name is on record."""
    here = entry.run.folder / path
    return here if len(Path(path).parts) > 1 else RunFolder(entry.run.folder).dataset / path


def _real(entry: RankedRun) -> tuple[Path, ...]:
    return tuple(sorted(path for path in RunFolder(entry.run.folder).dataset.glob("*") if path.is_file()))


def extremes(comparison: Comparison) -> dict[str, tuple[list[Shot], list[Shot]]]:
    """Column -> its best and its worst pictures over all runs, best and worst first."""
    found = {}
    for column in EXTREMES:
        shots = [shot for shot in _all(comparison, column) if math.isfinite(shot.values.get(column, math.nan))]
        values = {id(shot): shot.values[column] for shot in shots}
        shots.sort(key=lambda shot: values[id(shot)], reverse=COLUMNS[column].better == "higher")
        few = min(_SHOWN, len(shots) // 2)
        if few:
            found[column] = (shots[:few], shots[::-1][:few])
    return found


def _all(comparison: Comparison, column: str) -> Iterator[Shot]:
    for entry in comparison.finished:
        assert entry.run.report is not None
        pictures = entry.run.report.class_images if column == "pres" else entry.run.report.images
        yield from (_shot(entry, scores) for scores in pictures if scores.row == "run")


def copies(comparison: Comparison) -> list[CopyPair]:
    """Samples nearer to a training picture than those are to each other, nearest first; the first few of them."""
    found = []
    for entry in comparison.finished:
        assert entry.run.report is not None
        scores = {one.path: one for one in entry.run.report.images if one.row == "run"}
        found += [
            CopyPair(_shot(entry, scores[copy.path]), _inside(entry, copy.nearest), copy.similarity)
            for copy in entry.run.report.copies
            if copy.path in scores
        ]
    return sorted(found, key=lambda pair: -pair.similarity)[:_COPIES]


def by_importance(
    shown: Sequence[Sheet], best: Mapping[str, tuple[list[Shot], list[Shot]]], copied: Sequence[CopyPair]
) -> Iterator[Path]:
    """Every picture of a page: photographs, copies, extremes, then the sheets, seed by seed and best run first."""
    for sheet in shown:
        yield from sheet.real
    for pair in copied:
        yield from (pair.shot.path, pair.original)
    for pair_of_lists in best.values():
        for shots in pair_of_lists:
            yield from (shot.path for shot in shots)
    most = max((len(s) for sheet in shown for own in sheet.shots.values() for s in own.values()), default=0)
    for number in range(most):
        for sheet in shown:
            for own in (sheet.base, *(sheet.shots[name] for name in sheet.runs)):
                yield from (shots[number].path for shots in own.values() if number < len(shots))
