"""The contact sheet, by its pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dbexp.compare.contact_sheet import THUMBNAIL, SheetColumn, contact_sheet, thumbnail
from dbexp.core.errors import ConfigError

Painter = Callable[..., Path]
COLOURS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "magenta": (255, 0, 255)}


@pytest.fixture
def picture(tmp_path: Path) -> Painter:
    """Make a picture of one colour."""

    def make(colour: str, size: tuple[int, int] = (64, 64)) -> Path:
        path = tmp_path / f"{colour}-{size[0]}x{size[1]}.png"
        Image.new("RGB", size, colour).save(path)
        return path

    return make


def blocks(path: Path, colour: str) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, width, height) of the connected rectangles of a colour, from left to right, then down."""
    mask = (read(path) == COLOURS[colour]).all(axis=2)
    boxes = []
    while mask.any():
        top, left = map(int, np.argwhere(mask)[0])
        width = int(np.argmin(np.append(mask[top, left:], False)))
        height = int(np.argmin(np.append(mask[top:, left], False)))
        assert mask[top : top + height, left : left + width].all()
        mask[top : top + height, left : left + width] = False
        boxes.append((left, top, width, height))
    return boxes


def read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_rows_are_prompts_and_columns_are_models(tmp_path: Path, picture: Painter) -> None:
    base = SheetColumn("base model", {"p": [picture("red"), picture("magenta")], "q": [picture("red")]}, limit=1)
    tuned = SheetColumn(
        "adapter on", {"p": [picture("lime"), picture("blue")], "q": [picture("lime"), picture("blue")]}
    )
    sheet = tmp_path / "sheet.png"
    contact_sheet([base, tuned], sheet, title="run")
    red, lime, blue = (blocks(sheet, colour) for colour in ("red", "lime", "blue"))
    assert not blocks(sheet, "magenta"), "the limit of a column"
    assert [box[2:] for box in red + lime + blue] == [(128, 128)] * 6
    for row in (0, 1):
        assert red[row][1] == lime[row][1] == blue[row][1]
        assert red[row][0] < lime[row][0] < blue[row][0]
    assert red[1][1] >= red[0][1] + 128
    assert red[0][0] == red[1][0]


def test_many_rows_of_few_columns_stand_in_panels(tmp_path: Path, picture: Painter) -> None:
    sheet = tmp_path / "sheet.png"
    red, lime = picture("red"), picture("lime")
    contact_sheet([SheetColumn("x", {f"p{row}": [lime if row == 5 else red] for row in range(11)})], sheet, title="run")
    boxes = blocks(sheet, "red")
    lefts = sorted({box[0] for box in boxes})
    assert [sum(box[0] == left for box in boxes) for left in lefts] == [5, 5], "six rows with lime, and the other five"
    assert len({box[1] for box in boxes}) == 5
    (other,) = blocks(sheet, "lime")
    assert other[0] == lefts[0] and other[1] > max(box[1] for box in boxes), "rows go on below, then beside"
    assert max(box[0] + box[2] for box in boxes) < read(sheet).shape[1]


def test_the_subjects_pictures_stand_above_in_one_line(tmp_path: Path, picture: Painter) -> None:
    tall = picture("red", (300, 400))
    column = SheetColumn("adapter on", {"p": [picture("lime", (512, 512))] * 4})
    sheet = tmp_path / "sheet.png"
    contact_sheet([column], sheet, title="run", real=[tall] * 6)
    photographs, samples = blocks(sheet, "red"), blocks(sheet, "lime")
    assert len(photographs) == 6
    assert len({box[1] for box in photographs}) == 1
    assert max(box[1] + box[3] for box in photographs) < min(box[1] for box in samples)
    width, height = photographs[0][2:]
    assert width / height == pytest.approx(300 / 400, abs=0.02)
    assert samples[0][2:] == (THUMBNAIL, THUMBNAIL)


def test_many_pictures_of_the_subject_wrap(tmp_path: Path, picture: Painter) -> None:
    sheet = tmp_path / "sheet.png"
    contact_sheet([SheetColumn("x", {"p": [picture("lime")]})], sheet, title="run", real=[picture("red")] * 40)
    photographs = blocks(sheet, "red")
    assert len(photographs) == 40
    assert len({box[1] for box in photographs}) > 1
    assert max(box[0] + box[2] for box in photographs) <= read(sheet).shape[1]


def test_missing_pictures_leave_a_grey_cell(tmp_path: Path, picture: Painter) -> None:
    gone = tmp_path / "gone.png"
    columns = [
        SheetColumn("a", {"p": [picture("red"), gone], "q": [picture("red")]}),
        SheetColumn("b", {"q": [picture("lime")]}),
    ]
    sheet = tmp_path / "sheet.png"
    contact_sheet(columns, sheet, title="run")
    red, [lime] = blocks(sheet, "red"), blocks(sheet, "lime")
    assert lime[1] == red[1][1]
    hole = read(sheet)[red[0][1] + 5, lime[0] + 5]
    assert hole.min() > 220
    assert hole.max() < 250


def test_headings_and_prompts_are_written(tmp_path: Path, picture: Painter) -> None:
    def ink(**texts: str) -> int:
        sheet = tmp_path / "sheet.png"
        column = SheetColumn(texts.get("heading", ""), {texts.get("prompt", ""): [picture("red")]})
        contact_sheet([column], sheet, title=texts.get("title", ""), label=texts.get("label"))
        return int((read(sheet).max(axis=2) < 128).sum())

    empty = ink()
    for name in ("title", "label", "heading", "prompt"):
        assert ink(**{name: "dog3"}) > empty + 20, name


def test_a_long_prompt_wraps_beside_its_pictures(tmp_path: Path, picture: Painter) -> None:
    sheet = tmp_path / "sheet.png"
    prompts = ["a sks dog wearing a black top hat and a monocle " * 6, "Donaudampfschifffahrt" * 8, "犬"]
    contact_sheet([SheetColumn("run", {prompt: [picture("red")] for prompt in prompts})], sheet, title="t" * 200)
    pixels, pictures = read(sheet), blocks(sheet, "red")
    gutter = pixels[pictures[0][1] :, pictures[0][0] - 15 : pictures[0][0]]
    rules = (gutter < 250).all(axis=(1, 2))
    assert (gutter[~rules] > 250).all(), "text ran into the pictures"
    assert pictures[1][1] - pictures[0][1] > 200, "the row grew with its label"
    assert (pixels[:, -20:] > 250).all(), "the title ran out of the page"


def test_thumbnails_are_reduced_smoothly_and_enlarged_sharply() -> None:
    large = thumbnail(Image.new("RGB", (1000, 500), "red"))
    assert large.size == (192, 96)
    checks = Image.fromarray((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    doubled = thumbnail(checks)
    assert doubled.size == (128, 128)
    assert set(np.unique(np.asarray(doubled))) == {0, 255}
    assert thumbnail(checks, 40).size == (40, 40)
    assert thumbnail(Image.new("RGB", (32, 32))).size == (128, 128)
    assert thumbnail(Image.new("RGB", (150, 100))).size == (150, 100)
    assert thumbnail(Image.new("RGB", (2000, 1))).size == (192, 1)


def test_the_suffix_decides_the_format_and_the_input_the_bytes(tmp_path: Path, picture: Painter) -> None:
    columns = [SheetColumn("x", {"p": [picture("red")]})]
    for name, kind in (("a.png", "PNG"), ("b.png", "PNG"), ("c.jpg", "JPEG")):
        contact_sheet(columns, tmp_path / "new" / name, title="run")
        with Image.open(tmp_path / "new" / name) as image:
            assert image.format == kind
    assert (tmp_path / "new" / "a.png").read_bytes() == (tmp_path / "new" / "b.png").read_bytes()


def test_nothing_to_show_or_a_damaged_picture_is_an_error(tmp_path: Path, picture: Painter) -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        contact_sheet([SheetColumn("x", {"p": []})], tmp_path / "sheet.png", title="run")
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(picture("red").read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"damaged.png"):
        contact_sheet([SheetColumn("x", {"p": [damaged]})], tmp_path / "sheet.png", title="run")
    assert not (tmp_path / "sheet.png").exists()
