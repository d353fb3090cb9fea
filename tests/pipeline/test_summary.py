"""The summary of a sweep says what the table on disk says."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest

from dbexp import tracking
from dbexp.compare.results import csv_text
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.report import Report
from dbexp.pipeline import summary
from dbexp.runs import record
from dbexp.runs.record import Run

BASE = {"dino": Estimate(0.2, 0.1, 0.3, 25)}


def run(folder: Path, rank: int, *, pictures: bool = False, **columns: float) -> Run:
    """A finished run with some columns; without any, a failed one."""
    rows = {"run": {name: Estimate(value, value - 0.1, math.nan, 25) for name, value in columns.items()}, "base": BASE}
    report = Report("random weights", "sks", "dog", {}, {}, rows, {}, (), (), (), math.nan)
    if pictures:
        (folder / "sample").mkdir(parents=True)
        (folder / "sample" / "contact_sheet.png").touch()
    finished = bool(columns)
    return Run(
        folder=folder,
        name=f"rank={rank}",
        status="finished" if finished else "failed",
        overrides=(f"lora.rank={rank}",),
        config={"lora.rank": rank, "objective": "dino"},
        report=report if finished else None,
        error=None if finished else "ValueError: no\nmore",
    )


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    return [
        run(tmp_path / "0", 4, dino=1 / 3, clip_t=0.3),
        run(tmp_path / "1", 8),
        run(tmp_path / "2", 16, dino=0.5, clip_t=0.25, pictures=True),
        run(tmp_path / "3", 32, dino=0.4, clip_t=0.2),
    ]


def test_jobs_are_best_first_then_failures_then_references(runs: list[Run], tmp_path: Path) -> None:
    made = summary.comparison(runs, "dino", tmp_path)
    assert [(row.title, row.status) for row in made.rows] == [
        ("2: rank=16", "finished"),
        ("3: rank=32", "finished"),
        ("0: rank=4", "finished"),
        ("1: rank=8", "failed"),
        ("base model", "reference"),
    ]
    assert made.settings == ("lora.rank",)
    assert [row.settings.get("lora.rank") for row in made.rows] == [16, 32, 4, 8, None]
    assert (made.rows[0].contact_sheet, made.rows[1].contact_sheet) == ("2/sample/contact_sheet.png", None)
    assert made.rows[3].error == "ValueError: no"


def test_its_numbers_are_those_of_the_csv(runs: list[Run], tmp_path: Path) -> None:
    made = summary.comparison(runs, "dino", tmp_path)
    written = list(csv.DictReader(io.StringIO(csv_text(runs, "dino"))))
    for row, line in zip(made.rows, written, strict=False):
        assert row.title.partition(":")[0] == line["job"]
        for column, (value, low, high) in row.values.items():
            assert line[column] == f"{value:.9g}"
            assert line[f"{column}_low"] == f"{low:.9g}"
            assert high is None


def test_the_front_has_who_is_not_beaten(runs: list[Run], tmp_path: Path) -> None:
    assert summary.comparison(runs, "dino", tmp_path).front == ("2: rank=16", "0: rank=4")


def test_a_damaged_sweep_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "result.json").write_text("{}")
    summary.summarise(tmp_path)
    assert "summary of" in caplog.text and "KeyError" in caplog.text


def test_the_objective_and_the_jobs_come_from_the_folder(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    monkeypatch.setattr(record, "load", lambda sweep: runs)
    monkeypatch.setattr(tracking, "summarise", lambda *arguments: told.extend(arguments))
    summary.summarise(tmp_path)
    assert told == [tmp_path, summary.comparison(runs, "dino", tmp_path), [one.folder for one in runs]]
