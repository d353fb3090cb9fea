"""results.csv: a line per job, best first."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from dbexp.compare.results import RESULTS, csv_text, write_results
from dbexp.config.schema import Config
from dbexp.config.values import plain
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.report import Report
from dbexp.runs.record import Run
from tests.compare.sweeps import report_of, unwritten


def rows(runs: list[Run], objective: str = "dino") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(runs, objective))))


def test_csv() -> None:
    runs = [
        unwritten(0, "lora.rank=2", "train.lr=0.0001", dino=0.5, n_blank=1),
        unwritten(1, "lora.rank=4", "train.lr=0.0001", error="it failed, badly"),
        unwritten(2, "lora.rank=8", "train.lr=0.001", dino=0.7, n_blank=math.nan),
    ]
    best, worse, failed = rows(runs)
    assert [row["job"] for row in (best, worse, failed)] == ["2", "0", "1"]
    assert (best["lora.rank"], best["train.lr"], best["dino"], best["n_blank"]) == ("8", "0.001", "0.7", "")
    assert (float(best["dino_low"]), float(best["dino_high"])) == pytest.approx((0.6, 0.8))
    assert (failed["status"], failed["lora.rank"], failed["dino"]) == ("failed", "4", "")
    assert failed["error"] == "it failed, badly"
    assert "clip_i" not in best and "name" not in best
    assert csv_text(runs, "dino") == csv_text(runs[::-1], "dino")


def write(folder: Path, report: Report | None, config: Config) -> None:
    folder.mkdir(parents=True)
    result: dict[str, Any] = {"name": "name", "overrides": ["lora.rank=16"], "status": "finished"}
    if report:
        (folder / "evaluate").mkdir()
        record = {"report": json.loads(report.to_json()), "config": plain(config)}
        (folder / "evaluate" / "metrics.json").write_text(json.dumps(record))
    else:
        result |= {"status": "stopped", "error": "a signal", "config": plain(config)}
    (folder / "result.json").write_text(json.dumps(result))


def test_a_sweep_is_read_from_its_folders(tmp_path: Path) -> None:
    for number in (10, 2):
        write(tmp_path / str(number), report_of(dino=0.5, pres=math.nan), Config())
    write(tmp_path / "9", None, Config())
    (tmp_path / "3").mkdir()  # a job that has not ended
    runs = write_results(tmp_path, "pres")
    assert [run.number for run in runs] == [2, 9, 10]
    assert runs[0].report is not None and runs[0].report.rows["run"]["dino"] == Estimate(0.5, 0.4, 0.6, 25)
    assert runs[0].config["lora.rank"] == 16 and runs[1].config["lora.rank"] == 16
    assert runs[1].report is None and runs[1].error == "a signal"
    text = (tmp_path / RESULTS).read_text()
    assert [line.split(",")[0] for line in text.splitlines()] == ["job", "2", "10", "9"]


def test_no_runs_no_file(tmp_path: Path) -> None:
    assert write_results(tmp_path, "dino") == []
    assert not list(tmp_path.iterdir())
