"""What the script of the page works on, as JSON: runs, what is on record of them, and their pictures."""

from __future__ import annotations

import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dbexp.compare.comparison import Comparison
from dbexp.compare.costs import TITLES, words
from dbexp.compare.numbers import DASH, display
from dbexp.compare.page import gallery
from dbexp.compare.page.figure import PALETTE
from dbexp.compare.page.gallery import CopyPair, GalleryImage, Opening, Sheet
from dbexp.compare.page.pictures import EmbeddedImages
from dbexp.compare.page.question import command
from dbexp.compare.ranking import RankedRun
from dbexp.evaluate.columns import column_of
from dbexp.runs.folder import RunFolder


class PageData:
    """The content of the page for its script.

    Args:
        comparison: what to show.
        images: those that lie in the page.
        folder: where the page will be.
    """

    def __init__(self, comparison: Comparison, images: EmbeddedImages, folder: Path) -> None:
        self.comparison, self.images, self.folder = comparison, images, folder
        self.titles = {entry.id: entry.title for entry in comparison.entries} | {"base": "base model"}
        self.photographs: dict[int | Path, tuple[int, dict[str, Any]]] = {}  # of several runs with one file, once

    def of(
        self,
        sheets: Sequence[Sheet],
        extremes: Mapping[str, tuple[list[GalleryImage], list[GalleryImage]]],
        copies: Sequence[CopyPair],
        opening: Opening | None,
    ) -> dict[str, Any]:
        """Sheets, extremes, copies and the opening, beside the runs and what differs between them."""
        content = {
            "runs": {entry.id: dict(entry.settings) for entry in self.comparison.entries},
            "about": {entry.id: self._about(entry) for entry in self.comparison.entries},
            "palette": PALETTE,
            "factors": [asdict(factor) for factor in self.comparison.factors],
            "sheets": [self._sheet(sheet) for sheet in sheets],
            "opening": asdict(opening) if opening else None,
            "extremes": {
                column: [
                    [{**self._image(image), "value": display(column, image.values[column])} for image in images]
                    for images in ends
                ]
                for column, ends in extremes.items()
            },
            "copies": [
                {
                    "sample": self._image(pair.sample),
                    "original": self._file(pair.original),
                    "similarity": display("dino", pair.similarity),
                }
                for pair in copies
            ],
        }
        return content | {"photographs": [file for _, file in self.photographs.values()]}

    def _about(self, entry: RankedRun) -> dict[str, Any]:
        """What a run has beside its settings and scores."""
        run = entry.run
        files = RunFolder(run.folder)
        costs = zip(TITLES, words([run.costs]), strict=True)
        return {
            "title": entry.title,
            "status": run.status,
            "error": run.error or "",
            "command": command(run.folder),
            "costs": [[title, cell] for title, cell in costs if cell != DASH],
            "folder": _link(run.folder, self.folder),
            "lora": _link(files.lora, self.folder) if files.lora.is_file() else None,
        }

    def _sheet(self, sheet: Sheet) -> dict[str, Any]:
        columns = ({"base": sheet.base} if sheet.base else {}) | {name: sheet.images[name] for name in sheet.runs}
        return {
            "title": sheet.title,
            "prompts": list(sheet.prompts),
            "real": [self._file(path) for path in sheet.real],
            "columns": [
                {
                    "run": run,
                    "title": self.titles[run],
                    "images": [
                        {image.number: self._image(image) for image in by_prompt.get(prompt, ())}
                        for prompt in sheet.prompts
                    ],
                }
                for run, by_prompt in columns.items()
            ],
        }

    def _image(self, image: GalleryImage) -> dict[str, Any]:
        scores = ", ".join(
            f"{column_of(column).title} {display(column, image.values[column])}"
            for column in gallery.EXTREMES
            if column in image.values
        )
        about = {"run": image.run, "title": self.titles[image.run], "prompt": image.prompt, "number": image.number}
        return {**self._file(image.path), **about, "scores": scores, **self._nearest(image)}

    def _nearest(self, image: GalleryImage) -> dict[str, Any]:
        """The photograph that an image is most like: its place in `photographs`, and how much."""
        if image.nearest is None:
            return {}
        place = self.images.indices.get(image.nearest)
        name = place if place is not None else image.nearest
        if name not in self.photographs:
            self.photographs[name] = len(self.photographs), self._file(image.nearest)
        return {"nearest": self.photographs[name][0], "alike": display("dino", image.values.get("dino_max", math.nan))}

    def _file(self, path: Path) -> dict[str, Any]:
        return {"picture": self.images.indices.get(path), "file": _link(path, self.folder)}


def _link(path: Path, folder: Path) -> str:
    """A file as the page links to it: relative, with every odd character encoded."""
    return urllib.parse.quote(Path(os.path.relpath(path, folder)).as_posix())
