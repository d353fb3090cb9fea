"""The images on a model card: samples of the run, and the base model beside the LoRA."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dbexp.compare.contact_sheet import SheetColumn, contact_sheet
from dbexp.evaluate.report import Report
from dbexp.runs import foreign
from dbexp.runs.folder import RunFolder
from dbexp.runs.record import TrainedRun

GRID = "images/grid.png"
_BASE_IMAGES, _RUN_IMAGES = 1, 3  # images per prompt on the grid


def copy_samples(run: TrainedRun, report: Report, folder: Path, count: int) -> list[tuple[str, str]]:
    """Copy the first sample of each of the first prompts: (prompt, path in the folder)."""
    samples = _samples(run)
    first = {image.prompt: run.folder / image.path for image in reversed(report.images) if image.row == "run"}
    prompts = [scores.prompt for scores in report.prompts if scores.row == "run"]
    chosen = [(prompt, first[prompt]) for prompt in prompts if first.get(prompt) in samples][:count]
    copies = []
    for number, (prompt, source) in enumerate(chosen):
        path = f"images/{number}{source.suffix}"
        (folder / path).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / path)
        copies.append((prompt, path))
    return copies


def lay_out_grid(run: TrainedRun, report: Report, folder: Path, prompts: Sequence[str]) -> None:
    """The base model beside the LoRA on some prompts. The subject's own photographs are not on it: they are private."""
    samples = _samples(run)

    def column(row: str, heading: str, limit: int) -> SheetColumn:
        images: dict[str, list[Path]] = {prompt: [] for prompt in prompts}
        for image in report.images:
            if image.row == row and image.prompt in images and run.folder / image.path in samples:
                images[image.prompt].append(run.folder / image.path)
        return SheetColumn(heading, images, limit)

    columns = [column("base", "base model", _BASE_IMAGES), column("run", "this LoRA", _RUN_IMAGES)]
    contact_sheet(columns, folder / GRID, title=run.config.dataset.name, label=report.label)


def _samples(run: TrainedRun) -> set[Path]:
    """The pictures that a run has drawn. Only these are shown: a record may name any file, of the user's too."""
    files = RunFolder(run.folder).sample.rglob("*.png")
    return {path for path in files if foreign.regular(run.folder, path.relative_to(run.folder))}
