"""The summary of a sweep in W&B says what the table on disk says."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from dbexp import tracking
from dbexp.compare.comparison import Comparison
from dbexp.compare.gather import compare
from dbexp.compare.results import csv_text
from dbexp.compare.summary import summarise, summary
from tests.compare import sweeps


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four finished runs, the first of which has a contact sheet, and a failed one."""
    folder = sweeps.sweep(tmp_path_factory.mktemp("sweep"), {"lora.rank": (4, 8, 16, 32)}, each=1, side=8)
    sweeps.failed(folder / "4", {"lora.rank": 64}, "ValueError: no\nmore")
    (folder / "0" / "sample" / "contact_sheet.png").touch()
    return folder


@pytest.fixture(scope="module")
def comparison(sweep: Path) -> Comparison:
    return compare([sweep], "dino")


def test_runs_are_best_first_then_failures_then_references(comparison: Comparison, sweep: Path) -> None:
    shown = summary(comparison, sweep)
    assert shown.columns[:4] == ["run", "status", "lora.rank", "DINO ↑"]
    assert shown.columns[-3:] == ["Pareto front", "label", "error"]
    order = [entry.title for entry in comparison.finished]
    assert [row[0] for row in shown.rows] == [*order, "4: rank=64", "base model", "real images"]
    assert [row[1] for row in shown.rows] == ["finished"] * 4 + ["failed", "reference", "reference"]
    assert {row[0]: row[2] for row in shown.rows}["0: rank=4"] == 4, "W&B plots numbers, not their spelling"
    assert [row[2] for row in shown.rows[-3:]] == [64, None, None]
    assert shown.rows[4][-3:] == ["", None, "ValueError: no"]
    assert all(len(row) == len(shown.columns) for row in shown.rows)


def test_its_numbers_are_those_of_the_csv(comparison: Comparison, sweep: Path) -> None:
    shown = summary(comparison, sweep)
    written = list(csv.DictReader(io.StringIO(csv_text([entry.run for entry in comparison.entries], "dino"))))
    for row, line in zip(shown.rows, written, strict=False):
        cells = dict(zip(shown.columns, row, strict=True))
        assert cells["run"].partition(":")[0] == line["job"]
        for heading, column in (("DINO ↑", "dino"), ("dino low", "dino_low"), ("PRES ↓", "pres")):
            assert ("" if cells[heading] is None else f"{cells[heading]:.9g}") == line[column]


def test_the_best_run_the_front_and_the_pictures(comparison: Comparison, sweep: Path) -> None:
    shown, best = summary(comparison, sweep), comparison.finished[0]
    assert (shown.title, shown.label, shown.best["dino"]) == (best.title, "made up", best.run.value("dino"))
    assert shown.counts == {"finished": 4, "failed": 1}
    assert shown.axes == ["CLIP-T", "DINO"]
    assert [point[3] for point in shown.points] == [entry.on_front for entry in comparison.finished]
    front = {row[0] for row in shown.rows if row[-3] == "yes"}
    assert front == {point[0] for point in shown.points if point[3]} != set()
    assert shown.sheets == [["0: rank=4", "0/sample/contact_sheet.png"]]


def test_a_sweep_without_a_finished_run(tmp_path: Path) -> None:
    sweeps.failed(tmp_path / "0", {"lora.rank": 64}, "no")
    shown = summary(compare([tmp_path]), tmp_path)
    assert (shown.best, shown.title, shown.points, shown.counts) == ({}, None, [], {"failed": 1})


def test_trouble_costs_a_warning(
    comparison: Comparison, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(tracking, "summarise", full)
    summarise(comparison)
    assert "summary of" in caplog.text and "No space left" in caplog.text


def test_the_runs_of_the_sweep_are_named_and_a_single_run_is_none(
    comparison: Comparison, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(tracking, "summarise", lambda *arguments: calls.append(arguments))
    summarise(comparison)
    assert calls == [(sweep, summary(comparison, sweep), [entry.run.folder for entry in comparison.entries])]
    summarise(compare([sweep / "0"]))
    assert len(calls) == 1


def test_the_best_run_of_the_recommended_setting_is_named(tmp_path: Path) -> None:
    """Of each subject one, whatever seed it has."""
    grid = {"lora.rank": (4, 8), "seed": (1, 2), "dataset.name": ("dog", "cat")}
    folder = sweeps.sweep(tmp_path / "sweep", grid, each=1, side=8)
    found = compare([folder], "recommend")
    first = found.recommendation.first
    assert first is not None and len(first.entries) == 4
    of = {entry.run.folder.name: entry for entry in first.entries}
    names = summary(found, folder).best_runs
    assert {of[name].run.config["dataset.name"] for name in names} == {"dog", "cat"} and len(names) == 2
    for name in names:
        rivals = [e for e in first.entries if e.run.config["dataset.name"] == of[name].run.config["dataset.name"]]
        assert of[name].run.value("recommend") == max(entry.run.value("recommend") for entry in rivals)
