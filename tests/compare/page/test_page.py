"""The page and the files beside it: one set of numbers, nothing from outside, nothing that escapes its cell."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dbexp.compare import command
from dbexp.compare.gather import compare
from dbexp.compare.page import page as report
from dbexp.compare.statements import statements
from dbexp.compare.write import ComparisonFiles, write_comparison
from tests.compare import sweeps

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """Cells of every table row, and every address that the page asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[dict[str, str]]] = []
        self.addresses: list[str] = []
        self.scripts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.scripts += tag == "script"
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append({"tag": tag, **attributes})


def is_other(cell: dict[str, str]) -> bool:
    """Whether a cell is hidden until all columns are asked for."""
    return "other" in cell.get("class", "").split()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ComparisonFiles:
    folder = sweeps.sweep(tmp_path_factory.mktemp("sweep"), {"lora.rank": (4, 8), "prior.weight": (0, 1)})
    sweeps.failed(folder / "9", {"lora.rank": 4, "prior.weight": 2}, HOSTILE)
    return write_comparison([folder], "dino")


@pytest.fixture(scope="module")
def page(files: ComparisonFiles) -> Page:
    return Page(files.page.read_text(encoding="utf-8"))


def test_every_number_is_that_of_the_csv(files: ComparisonFiles, page: Page) -> None:
    rows = [
        row for row in csv.DictReader(files.csv.read_text(encoding="utf-8").splitlines()) if row["status"] == "finished"
    ]
    assert len(rows) == 4
    for column in ("dino", "clip_i", "clip_t", "pres", "div"):
        cells = [cell for row in page.rows for cell in row if cell.get("data-column") == column]
        values = {cell["data-value"] for cell in cells if cell["tag"] == "td"}
        assert {row[column] for row in rows} <= values, column


def test_headings_and_cells_stand_in_the_same_columns(page: Page) -> None:
    """What is hidden until asked for is hidden in every row, or numbers stand under wrong headings."""
    (heading,) = [row for row in page.rows if row and all(c["tag"] == "th" for c in row) and any(map(is_other, row))]
    hidden = [is_other(cell) for cell in heading]
    assert any(hidden)
    bodies = [row for row in page.rows if len(row) == len(heading) and row is not heading]
    assert len(bodies) >= 4
    for row in bodies:
        assert [is_other(cell) for cell in row] == hidden


def test_nothing_comes_from_outside(files: ComparisonFiles, page: Page) -> None:
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert files.page.stat().st_size < 25e6


def test_what_users_wrote_is_text(files: ComparisonFiles) -> None:
    text = files.page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    assert "alert(1)" in text  # the reason of the failure is told all the same


def test_a_sentence_says_what_prior_preservation_did(files: ComparisonFiles) -> None:
    (sentence,) = [
        statement.sentence for statement in statements(files.comparison) if "prior.weight" in statement.sentence
    ]
    assert re.search(r"PRES −0\.1\d+ \[", sentence), sentence  # the sweep was written with -0.12


def test_the_command_writes_the_same_and_refuses_an_empty_folder(
    files: ComparisonFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files.csv.read_bytes()
    command.main([str(files.csv.parent)])
    assert files.csv.read_bytes() == before
    assert str(files.page) in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        command.main([str(tmp_path)])
    assert stop.value.code not in (0, None)


def test_a_column_without_a_value_takes_no_place(tmp_path: Path) -> None:
    folder = sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, side=8)
    for file in folder.glob("*/evaluate/metrics.json"):
        record = json.loads(file.read_text())
        missing = {"value": None, "low": None, "high": None, "n": 0, "reason": "one sample per prompt"}
        record["report"]["rows"]["run"]["div"] = missing
        file.write_text(json.dumps(record))
    comparison = compare([folder])
    assert "div" in comparison.columns
    text = report.page(comparison, folder)
    headings = re.findall(r"<th[^>]*>(?:<button[^>]*>)?([^<]*)", text)
    assert headings.count("CLIP-T ↑") == 2, "of effects and of runs"
    assert "DIV ↑" not in headings
