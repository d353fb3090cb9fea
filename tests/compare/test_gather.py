"""Comparisons of several sweeps, of damaged ones, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dbexp.compare.gather import compare as gather
from dbexp.compare.write import write_comparison
from dbexp.core.errors import ConfigError
from tests.compare import sweeps


def test_several_sweeps_are_compared_together_and_repeats_count_once(tmp_path: Path) -> None:
    for name, ranks in (("first", (4, 8)), ("second", (8, 16))):
        sweeps.sweep(tmp_path / name, {"lora.rank": ranks}, each=1, side=8)
    comparison = gather([tmp_path / "first", tmp_path / "second"])
    assert {entry.id: entry.settings["lora.rank"] for entry in comparison.finished} == {
        "A0": "4",
        "A1": "8",
        "B1": "16",
    }
    assert comparison.notes == ("B0 repeats A1 and is left out.",)
    assert [(effect.low, effect.high) for effect in comparison.effects] == [("4", "8"), ("8", "16")]


def test_only_runs_that_make_pairs_are_compared_in_size(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "prior.weight": (0, 1)}, each=1, side=8)
    shutil.rmtree(tmp_path / "3")  # rank 8 with a weight: now the runs with a weight are smaller, but not their pairs
    sizes = {effect.factor.name: effect.size for effect in gather([tmp_path]).effects}
    assert sizes == {"lora.rank": 2, "prior.weight": None}


def test_a_damaged_run_is_told_and_the_rest_compared(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (4, 8, 16, 32)}, each=1, side=8)
    metrics, result = tmp_path / "1" / "evaluate" / "metrics.json", tmp_path / "2" / "result.json"
    metrics.write_text(metrics.read_text()[:1000])
    result.write_text('{"name": ')
    for picture in (tmp_path / "0" / "sample").glob("*/*.png"):
        picture.unlink()
    (tmp_path / "3" / "train" / "history.jsonl").write_text('{"step": 1, "lo')
    files = write_comparison([tmp_path])
    assert [entry.id for entry in files.comparison.finished] == ["3", "0"]
    states = {entry.id: entry.run.status for entry in files.comparison.entries if not entry.run.report}
    assert states == {"1": "damaged", "2": "damaged"}
    text = files.page.read_text(encoding="utf-8")
    assert "2 runs" in text and "its files cannot be read" in text


def test_the_way_from_base_to_real_is_left_out_where_the_base_is_as_good(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, each=1, side=8)
    scales = gather([tmp_path]).scales
    assert set(scales) == {"dino", "clip_i", "pres"}
    assert scales["dino"].real == scales["pres"].real == pytest.approx(0.82)
    assert scales["dino"].position(scales["dino"].base) == 0 and scales["dino"].position(0.82) == 1
    for record in tmp_path.glob("*/evaluate/metrics.json"):
        record.write_text(record.read_text().replace('"value": 0.82', '"value": 0.31'))
    assert "dino" not in gather([tmp_path]).scales
    record = tmp_path / "0" / "evaluate" / "metrics.json"
    record.write_text(record.read_text().replace('"dino": "dino"', '"dino": "another"'))
    comparison = gather([tmp_path])
    assert comparison.scales == {} and "different backbones" in comparison.notes[0]


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        gather([tmp_path, tmp_path / "nowhere"], "loss")
    assert len(error.value.problems) == 3
    assert "holds no run" in str(error.value) and "is no folder" in str(error.value)
    assert "objective=loss" in str(error.value) and "dino" in str(error.value)
