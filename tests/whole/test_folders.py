"""Two runs, or two sweeps, that start in the same second."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import hydra.core.utils
import pytest

from tests.sweeps import dbexp_command, results, tiny


class Noon(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: object = None) -> Noon:
        return cls(2026, 11, 27, 12, 0, 0)


def test_each_has_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hydra.core.utils, "datetime", Noon)
    words = [*tiny(tmp_path / "store"), "train.steps=2"]
    for rank in (2, 3):
        outcome = dbexp_command(tmp_path, "-m", *words, f"lora.rank={rank},4")
        assert outcome.status == 0, outcome.err
    for rank in (2, 3):
        assert dbexp_command(tmp_path, *words, f"lora.rank={rank}").status == 0
    sweeps, runs = tmp_path / "multirun" / "2026-11-27", tmp_path / "outputs" / "2026-11-27"
    assert sorted(path.name for path in sweeps.iterdir()) == ["12-00-00", "12-00-00-2"]
    assert sorted(path.name for path in runs.iterdir()) == ["12-00-00", "12-00-00-2"]
    for folder, rank in (("12-00-00", 2), ("12-00-00-2", 3)):
        assert {row["lora.rank"] for row in results(sweeps / folder)} == {str(rank), "4"}
        assert sorted(path.name for path in (sweeps / folder).iterdir() if path.is_dir()) == ["0", "1"]
        assert f"lora.rank={rank}" in (runs / folder / ".hydra" / "overrides.yaml").read_text()
        assert (runs / folder / "result.json").is_file()


def test_a_folder_named_by_hand_goes_on(tmp_path: Path) -> None:
    words = [*tiny(tmp_path / "store"), "train.steps=2", "lora.rank=2,4", "hydra.sweep.dir=sweep"]
    assert dbexp_command(tmp_path, "-m", *words).status == 0
    first = (tmp_path / "sweep" / "results.csv").read_bytes()
    assert dbexp_command(tmp_path, "-m", *words).status == 0
    assert (tmp_path / "sweep" / "results.csv").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("sweep")] == ["sweep"]
