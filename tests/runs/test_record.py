"""Runs side by side: who is best, means over seeds, results.csv."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dbexp.compare import printed
from dbexp.compare.results import RESULTS, csv_text, write_results
from dbexp.config.check import flatten, plain
from dbexp.config.schema import Config
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.report import Report
from dbexp.runs.record import Run, over_seeds, ranked


def report(**columns: float) -> Report:
    rows = {"run": {name: Estimate(value, value - 0.1, value + 0.1, 25) for name, value in columns.items()}}
    return Report(None, "sks", "dog", {}, {}, rows, {}, (), (), (), math.nan)


def run(number: int, *overrides: str, error: str | None = None, **columns: float) -> Run:
    """A run whose config is the default one with `name=value` overrides; failed if it has an error."""
    config = flatten(plain(Config()))
    config |= {"seed": 42, **{f"seeds.{stream}": 42 for stream in ("init", "data", "noise", "prior", "sample")}}
    for override in overrides:
        name, _, value = override.partition("=")
        assert name in config
        config[name] = json.loads(value)
        if name == "seed":
            config |= {key: json.loads(value) for key in config if key.startswith("seeds.")}
    status = "failed" if error else "finished"
    return Run(Path(str(number)), "name", status, overrides, config, None if error else report(**columns), error)


def rows(runs: list[Run], objective: str = "dino") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(csv_text(runs, objective))))


@pytest.mark.parametrize(
    ("objective", "order"), [("dino", [2, 0, 3, 1]), ("pres", [0, 3, 2, 1]), ("div", [0, 1, 2, 3])]
)
def test_ranked(objective: str, order: list[int]) -> None:
    runs = [
        run(0, dino=0.5, pres=0.1),
        run(1, dino=math.nan, pres=math.nan),
        run(2, dino=0.7, pres=0.3),
        run(3, dino=0.5, pres=0.2),
        run(4, error="it failed"),
    ]
    assert [one.number for one in ranked(runs, objective)] == order


def test_over_seeds() -> None:
    runs = [
        run(0, "lora.rank=2", "seed=1", dino=0.5, pres=0.1),
        run(1, "lora.rank=2", "seed=2", dino=0.7, pres=math.nan),
        run(2, "lora.rank=2", "seed=3", error="it failed"),
        run(3, "lora.rank=4", "seed=1", dino=0.9),
    ]
    two, one = over_seeds(runs)
    assert [member.number for member in two.runs] == [0, 1] and [member.number for member in one.runs] == [3]
    assert two.mean["dino"] == pytest.approx(0.6)
    assert two.deviation["dino"] == pytest.approx(math.sqrt(0.02))  # sample standard deviation: (0.1² + 0.1²) / 1
    assert math.isnan(two.mean["pres"]), "a mean over some of the seeds would not say so"
    assert one.mean["dino"] == 0.9 and math.isnan(one.deviation["dino"])


def shown(runs: list[Run], **console: Any) -> str:
    buffer = io.StringIO()
    printed.show(runs, "dino,clip_t", Console(file=buffer, **console))
    return buffer.getvalue()


def test_the_table_ends_with_means_over_seeds() -> None:
    runs = [
        run(0, "lora.rank=2", "seed=1", dino=0.5),
        run(1, "lora.rank=2", "seed=2", dino=0.7),
        run(2, "lora.rank=4", "seed=1", dino=0.9),
    ]
    table, below = shown(runs).split("mean ± standard deviation over seeds")
    assert table.index("2: rank=4 seed=1") < table.index("1: rank=2 seed=2") < table.index("0: rank=2 seed=1")
    lines = [line.split() for line in below.splitlines() if line.startswith("rank")]
    assert lines[0][:3] == ["rank=4", "1", "0.900"] and "±" not in lines[0]
    assert lines[1][:5] == ["rank=2", "2", "0.600", "±", "0.141"]
    assert "rank=2" in shown(runs, force_terminal=True, width=100)


def test_without_seeds_there_are_no_means() -> None:
    assert "±" not in shown([run(0, "lora.rank=2", dino=0.5), run(1, "lora.rank=4", dino=0.6)])
    assert shown([run(0, error="it failed")]) == ""


def test_a_line() -> None:
    assert printed.line(run(0, dino=0.5, clip_i=0.25, pres=math.nan)) == "DINO 0.500  CLIP-I 0.250  PRES –"
    assert printed.line(run(0, error="it failed\nfor a reason")) == "failed: it failed"


def test_csv() -> None:
    runs = [
        run(0, "lora.rank=2", "train.lr=0.0001", dino=0.5, n_blank=1),
        run(1, "lora.rank=4", "train.lr=0.0001", error="it failed, badly"),
        run(2, "lora.rank=8", "train.lr=0.001", dino=0.7, n_blank=math.nan),
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
        write(tmp_path / str(number), report(dino=0.5, pres=math.nan), Config())
    write(tmp_path / "9", None, Config())
    (tmp_path / "3").mkdir()  # a job that has not ended
    runs = write_results(tmp_path, "pres, dino")
    assert [one.number for one in runs] == [2, 9, 10]
    assert runs[0].report is not None and runs[0].report.rows["run"]["dino"] == Estimate(0.5, 0.4, 0.6, 25)
    assert runs[0].config["lora.rank"] == 16 and runs[1].config["lora.rank"] == 16
    assert runs[1].report is None and runs[1].error == "a signal"
    written = (tmp_path / RESULTS).read_text()
    assert [line.split(",")[0] for line in written.splitlines()] == ["job", "2", "10", "9"]


def test_no_runs_no_file(tmp_path: Path) -> None:
    assert write_results(tmp_path, "dino") == []
    assert not list(tmp_path.iterdir())
