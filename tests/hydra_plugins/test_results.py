"""The callback of every sweep, whatever its launcher."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.dbexp_pack import _console
from hydra_plugins.dbexp_pack._results import Results
from tests.compare import sweeps


@pytest.mark.parametrize(
    ("sweeper", "task", "says"),
    [
        ({"n_trials": 0}, [], "hydra.sweeper.n_trials=0: must be at least 1"),
        ({"params": {"lora.rank": "range(4,4)"}}, [], "lora.rank=range(4,4): no number lies in this range"),
        ({"params": {"lora.rank": "range(4,4)"}}, ["lora.rank=2,4"], None),
        ({"n_trials": 4}, ["lora=glob(att*)"], None),
    ],
)
def test_a_sweep_without_runs_does_not_start(
    composed: Callable[..., DictConfig], sweeper: dict[str, object], task: list[str], says: str | None
) -> None:
    usual = OmegaConf.to_container(composed(return_hydra_config=True).hydra)
    merged = OmegaConf.merge({"hydra": usual}, {"hydra": {"sweeper": sweeper, "overrides": {"task": task}}})
    assert isinstance(merged, DictConfig)
    if says is None:
        Results().on_multirun_start(merged)
        return
    with pytest.raises(SystemExit) as stop:
        Results().on_multirun_start(merged)
    assert str(stop.value.code).startswith(f"dbexp: {says}")


def test_a_sweep_that_runs_has_a_page_that_reads_itself_anew(tmp_path: Path) -> None:
    folder = sweeps.sweep(tmp_path / "sweep", {"lora.rank": (4, 8)}, side=8)
    record, page = folder / "multirun.yaml", folder / "report.html"
    record.write_text("{}")
    _console.write_page_so_far(folder)
    assert not page.exists(), "a sweep that is over in seconds needs none"
    long_ago = time.time() - 3600
    os.utime(record, (long_ago, long_ago))
    _console.write_page_so_far(folder)
    assert "data-running" in page.read_text(encoding="utf-8").split("<head>")[0]
    state = page.stat()
    _console.write_page_so_far(folder)
    assert page.stat().st_ino == state.st_ino, "not after every job"


def test_a_page_that_cannot_be_written_costs_the_sweep_nothing(tmp_path: Path) -> None:
    _console.write_page_so_far(tmp_path / "nowhere")
