"""The benchmark in small: five drawn subjects, two presets, two seeds, one command, with its page."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from tests import sweeps


@pytest.mark.slow
def test_the_storybook_benchmark_is_one_command(tmp_path: Path) -> None:
    words = [f"store={tmp_path / 'store'}", "tracking=disabled", "hydra.sweep.dir=sweep"]
    outcome = sweeps.dbexp_command(tmp_path, "-m", "experiment=benchmark/storybook", *words)
    assert outcome.status == 0, outcome.err
    text = (tmp_path / "sweep" / "benchmark.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    means = [row for row in rows if row["kind"] == "mean"]
    scope = "for subjects, prompts and training seeds like these (5 subjects, 125 prompts, 2 seeds)"
    assert {row["title"] for row in means} == {"weight=0", "weight=1"} and {row["speaks_of"] for row in means} == {
        scope
    }
    assert len([row for row in rows if row["kind"] == "subject"]) == 10
    by_weight = {row["title"]: {name: float(row[name]) for name in ("dino", "pres")} for row in means}
    base = next(row for row in rows if row["title"] == "base model")
    assert by_weight["weight=0"]["dino"] > float(base["dino"]), "something was learnt"
    assert by_weight["weight=0"]["pres"] > by_weight["weight=1"]["pres"], "without it the class drifts"
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert '<table id="benchmark">' in page and "storybook/teapot" in page
    assert not any(row["kind"] == "published" for row in rows), "a drawn world is held against nobody"
