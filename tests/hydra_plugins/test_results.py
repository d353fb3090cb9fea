"""The callback of every sweep, whatever its launcher."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.dbexp_pack._results import Results


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
