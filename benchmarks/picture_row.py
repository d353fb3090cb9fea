"""The pictures at the head of README: a subject, and what the base model and two LoRAs draw from the same seeds.

    python benchmarks/picture_row.py multirun/reference/7 multirun/reference/10 docs/pictures.png

The first run was trained without prior preservation, the second with it. Prompts are taken by their place in the list
of the paper, the first sample of each; of the class the first two samples.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dbexp.core.images import read_rgb
from dbexp.runs import record
from dbexp.runs.folder import RunFolder

CELL, GAP, NAME, HEAD, STRIP = 160, 6, 150, 44, 118
PROMPTS = (1, 2, 11, 14, 20)
CLASSES = 2


def rows(without: Path, weighted: Path) -> dict[str, tuple[list[Path], list[Path]]]:
    """Name of a model -> its samples and its class samples."""
    files, other = RunFolder(without), RunFolder(weighted)
    return {
        "base model": (_samples(files.base_samples), _images(files.base_class_samples)),
        "DreamBooth LoRA": (_samples(files.sample), _images(files.class_samples)),
        "with prior\npreservation": (_samples(other.sample), _images(other.class_samples)),
    }


def _samples(folder: Path) -> list[Path]:
    prompts = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[:2].isdecimal())
    return [prompts[place] / "0.png" for place in PROMPTS]


def _images(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"), key=lambda path: (len(path.name), path.name))[:CLASSES]


def picture(without: Path, weighted: Path) -> Image.Image:
    """The photographs above, then a row per model and a column per prompt."""
    run, models = record.read(weighted), rows(without, weighted)
    assert run.report is not None
    prompts = [scores.prompt for scores in run.report.prompts if scores.row == "run"]
    titles = [prompts[place] for place in PROMPTS] + [f"a {run.report.class_noun}"] * CLASSES
    width = NAME + len(titles) * (CELL + GAP) + 3 * GAP
    sheet = Image.new("RGB", (width, STRIP + HEAD + len(models) * (CELL + GAP)), "white")
    pen, font, bold = ImageDraw.Draw(sheet), ImageFont.load_default(15), ImageFont.load_default(16)
    _name(pen, bold, f"{len(_photographs(weighted))} pictures\nof one {run.report.class_noun}", 0, STRIP)
    for place, path in enumerate(_photographs(weighted)):
        _paste(sheet, path, NAME + place * (STRIP - GAP), 0, STRIP - 2 * GAP)
    for place, title in enumerate(titles):
        pen.multiline_text((_left(place), STRIP + 2), _folded(title, font), "#444", font, spacing=3)
    for line, (name, (samples, classes)) in enumerate(models.items()):
        top = STRIP + HEAD + line * (CELL + GAP)
        _name(pen, bold, name, top, CELL)
        for place, path in enumerate([*samples, *classes]):
            _paste(sheet, path, _left(place), top, CELL)
    return sheet


def _photographs(folder: Path) -> Sequence[Path]:
    return sorted(RunFolder(folder).dataset.iterdir())


def _left(place: int) -> int:
    apart = 3 * GAP if place >= len(PROMPTS) else 0
    return NAME + place * (CELL + GAP) + apart


def _name(
    pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, top: int, height: int
) -> None:
    pen.multiline_text((4, top + height // 2), text, "#111", font, anchor="lm", spacing=4)


def _paste(sheet: Image.Image, path: Path, left: int, top: int, side: int) -> None:
    image = read_rgb(path)
    # small pictures are shown pixel by pixel: they are no larger
    how = Image.Resampling.NEAREST if image.width < side and side % image.width == 0 else Image.Resampling.LANCZOS
    sheet.paste(image.resize((side, side), how), (left, top))


def _folded(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > CELL and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


if __name__ == "__main__":
    without, weighted, target = map(Path, sys.argv[1:4])
    picture(without, weighted).quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
