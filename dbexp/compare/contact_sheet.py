"""One picture that shows a run: a row per prompt, a column per model, and the subject's own pictures above.

The same layout serves one run (base model beside adapter) and a comparison (one column per run). Where columns are few,
rows stand in several panels side by side. PIL only.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dbexp.core.files import write_atomic
from dbexp.core.images import read_rgb

THUMBNAIL = 192
"""Longest side of a thumbnail in pixels."""
_LEGIBLE = 128  # smaller pictures are enlarged by whole factors up to this, pixel by pixel
_MARGIN, _GAP, _COLUMN_GAP, _LABEL_WIDTH, _LEAST_WIDTH = 28, 4, 20, 190, 640
_STRIP_LEAST = 64
_PANELS_WIDTH, _PANEL_ROWS = 2000, 5  # panels together are at most so wide, and have at least so many rows
_TITLE_SIZE, _TEXT_SIZE, _SMALL_SIZE = 26, 16, 14
_PAPER, _INK, _FAINT, _RULE, _HOLE = "white", "#1c1c1e", "#6b6b70", "#d8d8dc", "#ededf0"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class SheetColumn:
    """The pictures of one model, side by side."""

    heading: str
    """Printed above them: base model, adapter, a run's name."""
    images: Mapping[str, Sequence[Path]]
    """Prompt -> its pictures. A prompt or file that is missing leaves a grey cell."""
    limit: int | None = None
    """Pictures shown per prompt; None: all."""

    @property
    def width(self) -> int:
        """Cells side by side."""
        most = max((len(paths) for paths in self.images.values()), default=0)
        return most if self.limit is None else min(most, self.limit)


def contact_sheet(
    columns: Sequence[SheetColumn], path: Path, *, title: str, label: str | None = None, real: Sequence[Path] = ()
) -> None:
    """Write a contact sheet. Its rows are all prompts of the columns, in order of first appearance.

    Args:
        columns: at least one, with at least one picture.
        path: the file to write; its suffix decides the format (png, jpg, webp).
        title: name of the run or sweep.
        label: a caveat below the title, such as a model's `label`.
        real: the subject's own pictures, shown in a strip above the rows.

    Raises:
        ValueError: there is nothing to show.
        ConfigError: a picture cannot be read.
    """
    columns = [column for column in columns if column.width]
    if not columns:
        raise ValueError("a contact sheet needs at least one picture")
    prompts = list(dict.fromkeys(prompt for column in columns for prompt in column.images))
    rows = {prompt: [_cells(column, prompt) for column in columns] for prompt in prompts}
    sides = (max(thumb.size) for row in rows.values() for cells in row for thumb in cells if thumb)
    cell = max(sides, default=_LEGIBLE)
    counts = [column.width for column in columns]
    width = _width(counts, cell)
    panels = max(1, min(_PANELS_WIDTH // width, len(rows) // _PANEL_ROWS))
    sheet = _Sheet(max(_LEAST_WIDTH, panels * width))
    sheet.heading(title, label)
    if real:
        sheet.strip("the subject", [read_rgb(file) for file in real], cell)
    parts, length = [], -(-len(rows) // panels)
    for start in range(0, len(rows), length):
        panel = _Sheet(width if panels > 1 else max(_LEAST_WIDTH, width), margin=0)
        panel.column_headings([column.heading for column in columns], counts, cell)
        for prompt in prompts[start : start + length]:
            panel.row(prompt, rows[prompt], cell)
        parts.append(panel.finish())
    sheet.side_by_side(parts)
    buffer = io.BytesIO()
    kind = Image.registered_extensions().get(path.suffix.lower(), "PNG")
    sheet.finish().save(buffer, format=kind)
    write_atomic(path, buffer.getvalue())


def thumbnail(image: Image.Image, side: int = THUMBNAIL) -> Image.Image:
    """A picture made to fit a square of `side` pixels.

    Large ones are reduced smoothly; small ones are enlarged by a whole factor, every pixel a sharp block, and only as
    far as is needed to see them.
    """
    longest = max(image.size)
    if longest > side:
        scale = side / longest
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    factor = max(1, min(_LEGIBLE, side) // longest)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _cells(column: SheetColumn, prompt: str) -> list[Image.Image | None]:
    """Thumbnails of a column's pictures of a prompt, as many as the column is wide; None where there is none."""
    files = list(column.images.get(prompt, ()))[: column.width]
    thumbs = [thumbnail(read_rgb(file)) if file.is_file() else None for file in files]
    return [*thumbs, *[None] * (column.width - len(thumbs))]


def _span(count: int, cell: int) -> int:
    """Pixels that `count` cells take side by side."""
    return count * cell + (count - 1) * _GAP


def _width(counts: Sequence[int], cell: int) -> int:
    return _MARGIN + _LABEL_WIDTH + sum(_COLUMN_GAP + _span(count, cell) for count in counts) + _MARGIN


class _Sheet:
    """A page that grows downwards; every method paints below what is there."""

    def __init__(self, width: int, margin: int = _MARGIN) -> None:
        self._width, self._margin, self._y = width, margin, margin
        self._bands: list[tuple[int, Image.Image]] = []

    def heading(self, title: str, label: str | None) -> None:
        self._text(title, _TITLE_SIZE, _INK)
        if label:
            self._text(label, _TEXT_SIZE, _FAINT)
        self._y += 12

    def strip(self, name: str, images: Sequence[Image.Image], cell: int) -> None:
        """Pictures in one line, smaller than the cells if need be, or in several lines when they are many."""
        left = _MARGIN + _LABEL_WIDTH + _COLUMN_GAP
        room = self._width - _MARGIN - left + _GAP
        side = min(cell, max(_STRIP_LEAST, room // len(images) - _GAP))
        thumbs = [thumbnail(image, side) for image in images]
        side = max(thumb.width for thumb in thumbs)
        per_line = max(1, room // (side + _GAP))
        for start in range(0, len(thumbs), per_line):
            line = thumbs[start : start + per_line]
            band, draw = self._band(max(_line_height(_TEXT_SIZE), *(thumb.height for thumb in line)))
            if start == 0:
                _paragraph(draw, (_MARGIN, 0), name, _TEXT_SIZE, _FAINT, _LABEL_WIDTH)
            x = left
            for thumb in line:
                band.paste(thumb, (x, 0))
                x += side + _GAP
            self._y += _GAP
        self._y += 16

    def column_headings(self, headings: Sequence[str], counts: Sequence[int], cell: int) -> None:
        spans = [_span(count, cell) for count in counts]
        lines = [_wrap(heading, _font(_TEXT_SIZE), span) for heading, span in zip(headings, spans, strict=True)]
        _, draw = self._band(max(map(len, lines)) * _line_height(_TEXT_SIZE))
        x = _MARGIN + _LABEL_WIDTH + _COLUMN_GAP
        for heading, span in zip(headings, spans, strict=True):
            _paragraph(draw, (x, 0), heading, _TEXT_SIZE, _INK, span)
            x += span + _COLUMN_GAP
        self._y += 6

    def row(self, prompt: str, columns: Sequence[Sequence[Image.Image | None]], cell: int) -> None:
        rule, draw = self._band(9)
        draw.line(((_MARGIN, 4), (rule.width - _MARGIN, 4)), fill=_RULE)
        text_height = len(_wrap(prompt, _font(_TEXT_SIZE), _LABEL_WIDTH)) * _line_height(_TEXT_SIZE)
        band, draw = self._band(max(cell, text_height))
        _paragraph(draw, (_MARGIN, 0), prompt, _TEXT_SIZE, _INK, _LABEL_WIDTH)
        x = _MARGIN + _LABEL_WIDTH + _COLUMN_GAP
        for thumbs in columns:
            for thumb in thumbs:
                if thumb is None:
                    draw.rectangle((x, 0, x + cell - 1, cell - 1), fill=_HOLE)
                    draw.text((x + cell / 2, cell / 2), "missing", _FAINT, _font(_SMALL_SIZE), anchor="mm")
                else:
                    band.paste(thumb, (x + (cell - thumb.width) // 2, (cell - thumb.height) // 2))
                x += cell + _GAP
            x += _COLUMN_GAP - _GAP

    def side_by_side(self, panels: Sequence[Image.Image]) -> None:
        """Finished panels beside one another, their first lines level."""
        band, _ = self._band(max(panel.height for panel in panels))
        for number, panel in enumerate(panels):
            band.paste(panel, (number * panel.width, 0))

    def finish(self) -> Image.Image:
        page = Image.new("RGB", (self._width, self._y + self._margin), _PAPER)
        for y, band in self._bands:
            page.paste(band, (0, y))
        return page

    def _band(self, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        """A fresh strip of the page's width at the bottom."""
        band = Image.new("RGB", (self._width, height), _PAPER)
        self._bands.append((self._y, band))
        self._y += height
        return band, ImageDraw.Draw(band)

    def _text(self, text: str, size: int, colour: str) -> None:
        room = self._width - 2 * _MARGIN
        _, draw = self._band(len(_wrap(text, _font(size), room)) * _line_height(size))
        _paragraph(draw, (_MARGIN, 0), text, size, colour, room)


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _line_height(size: int) -> int:
    return round(1.35 * size)


def _paragraph(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, room: int) -> None:
    """Wrapped text whose first line starts at a point."""
    for number, line in enumerate(_wrap(text, _font(size), room)):
        draw.text((at[0], at[1] + number * _line_height(size)), line, colour, _font(size))


def _wrap(text: str, font: Font, room: int) -> list[str]:
    """Lines of at most `room` pixels: broken at spaces and after = / , _ and, if nothing else helps, anywhere."""
    lines = [""]
    for piece in re.findall(r"\s*[^\s=/,_]*[=/,_]*", " ".join(text.split())):
        if font.getlength(lines[-1] + piece) <= room:
            lines[-1] += piece
            continue
        lines.append("")
        for character in piece.lstrip():
            if lines[-1] and font.getlength(lines[-1] + character) > room:
                lines.append("")
            lines[-1] += character
    return [line for line in lines if line] or [""]
