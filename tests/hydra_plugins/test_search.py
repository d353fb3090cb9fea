"""What is asked of a study that was begun before; the whole of it, with Optuna, is in test_cluster_search.py."""

from __future__ import annotations

import enum
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.dbexp_pack import _search


class TrialState(enum.Enum):
    RUNNING, COMPLETE, FAIL, WAITING = range(4)

    def is_finished(self) -> bool:
        return self in (TrialState.COMPLETE, TrialState.FAIL)


@dataclass
class Study:
    """Stands for Optuna's."""

    states: list[TrialState]
    _storage: Any = field(init=False)

    def __post_init__(self) -> None:
        self._storage = SimpleNamespace(set_trial_state=self.states.__setitem__)

    @property
    def trials(self) -> list[Any]:
        return [SimpleNamespace(state=state, _trial_id=number) for number, state in enumerate(self.states)]


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """`study("COMPLETE", ...)` is what Optuna loads from now on."""
    silent = SimpleNamespace(get_verbosity=lambda: 0, set_verbosity=lambda _: None, WARNING=1)
    trial = SimpleNamespace(TrialState=TrialState)

    def load(*states: str) -> Study:
        result = Study([TrialState[state] for state in states])

        def load_study(**_: Any) -> Study:
            if not states:
                raise KeyError("there is no such study")
            return result

        optuna = SimpleNamespace(load_study=load_study, logging=silent, trial=trial)
        monkeypatch.setitem(sys.modules, "optuna", optuna)
        monkeypatch.setitem(sys.modules, "optuna.trial", trial)
        return result

    return load


def config(folder: Path, **changes: Any) -> DictConfig:
    sweeper = {
        "_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
        "study_name": "search",
        "storage": f"sqlite:///{folder / 'search.db'}",
        "n_trials": 6,
    }
    result = OmegaConf.create({"hydra": {"sweeper": {**sweeper, **changes}, "sweep": {"dir": str(folder / "sweep")}}})
    OmegaConf.set_struct(result, True)
    OmegaConf.set_readonly(result, True)
    return result


def test_only_a_study_that_outlives_its_process_is_resumed(tmp_path: Path) -> None:
    assert _search.is_search(config(tmp_path))
    assert not _search.is_search(config(tmp_path, storage=None))
    assert not _search.is_search(config(tmp_path, study_name=None))
    assert not _search.is_search(config(tmp_path, _target_="hydra._internal.core_plugins.basic_sweeper.BasicSweeper"))


@pytest.mark.parametrize(
    ("states", "remaining"),
    [
        ((), 6),
        (("COMPLETE", "FAIL"), 4),
        (("COMPLETE", "RUNNING", "RUNNING"), 5),
        (("COMPLETE",) * 6, 0),
        (("COMPLETE",) * 9, 0),
    ],
)
def test_as_many_trials_are_asked_for_as_are_missing(
    tmp_path: Path, study: Callable[..., Study], states: tuple[str, ...], remaining: int
) -> None:
    loaded, cfg = study(*states), config(tmp_path)
    _search.resume(cfg)
    assert cfg.hydra.sweeper.n_trials == remaining
    assert TrialState.RUNNING not in loaded.states
    assert loaded.states.count(TrialState.WAITING) == states.count("RUNNING")
    assert (tmp_path / "sweep").is_dir() == (remaining == 0)


@pytest.mark.parametrize("holder", ["another process", "another storage"])
def test_trials_of_another_process_are_left_alone(tmp_path: Path, study: Callable[..., Study], holder: str) -> None:
    loaded = study("COMPLETE", "RUNNING")
    cfg = config(tmp_path)
    if holder == "another storage":
        _search.resume(config(tmp_path, storage="postgresql://host/db"))
    else:
        with FileLock(tmp_path / "search.db.search.lock"):
            _search.resume(cfg)
    assert loaded.states == [TrialState.COMPLETE, TrialState.RUNNING]
