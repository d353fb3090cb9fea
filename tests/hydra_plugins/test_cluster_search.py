"""A search by Optuna that is killed: the same command goes on with its study, to the number of trials that was wanted,
and ends with the tables of a search that nobody killed.

It needs the extra `optuna`; without it the test is skipped.
"""

from __future__ import annotations

import importlib.util
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps import start, strike, tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="optuna is not installed"),
]

SEARCH = ["-m", "hydra/sweeper=search", "objective=dino+clip_t", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2"]


def trials(folder: Path) -> list[Any]:
    """Those of the study; none before it is begun."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search.db'}")
    except KeyError:
        return []
    return list(study.trials)


def states(folder: Path) -> Counter[str]:
    return Counter(trial.state.name for trial in trials(folder))


def second_pack_runs(folder: Path) -> bool:
    """Two trials are told, and two have been given their parameters."""
    if not (folder / "search.db").exists():
        return False
    return states(folder) == {"COMPLETE": 2, "RUNNING": 2} and all(trial.params for trial in trials(folder))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # optuna 2 and alembic, of each other
def test_a_killed_search_goes_on(tmp_path: Path) -> None:
    command = [*SEARCH, *tiny(tmp_path / "store"), "train.steps=30"]
    process = start(tmp_path, *command)
    strike(process, signal.SIGKILL, tmp_path, lambda: second_pack_runs(tmp_path), glance_seconds=0.2)
    cut = [trial.params for trial in trials(tmp_path)]

    assert start(tmp_path, *command).wait(900) == 0, (tmp_path / "said.log").read_text()
    assert "2 of 4 trials are there, 2 of the others were interrupted" in (tmp_path / "said.log").read_text()
    assert states(tmp_path) == {"COMPLETE": 4}
    assert [trial.params for trial in trials(tmp_path)] == cut

    assert start(tmp_path, *command).wait(900) == 0, (tmp_path / "said.log").read_text()
    assert "nothing is left to ask for" in (tmp_path / "said.log").read_text()
    assert states(tmp_path) == {"COMPLETE": 4}


RACE = ["-m", "hydra/sweeper=search", "objective=dino", "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=3"]
RACE += ["hydra.sweeper.sampler.n_startup_trials=2", "hydra.launcher.halving.rungs=[2,4]", "hydra.sweep.dir=sweep"]


def race(folder: Path) -> list[str]:
    """Six trials in two batches that race; TPE proposes the second one by what came of the first."""
    own = [word for word in tiny(folder / "store") if not word.startswith(("train.steps=", "train.lr="))]
    return [*RACE, *own, "train.steps=8"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert start(folder, *race(folder)).wait(900) == 0, (folder / "said.log").read_text()
    assert states(folder) == {"COMPLETE": 2, "PRUNED": 4}
    return folder


@pytest.mark.parametrize(
    ("line", "ends"),
    [
        ("training jobs 0, 1, 2", signal.SIGKILL),
        ("training jobs 0, 1, 2", signal.SIGTERM),
        ("at step 4", signal.SIGKILL),
        ("at step 4", signal.SIGTERM),
        ("training jobs 3, 4, 5", signal.SIGKILL),
        ("training jobs 3, 4, 5", signal.SIGTERM),
    ],
)
def test_a_racing_search_that_was_ended_ends_with_the_same_tables(
    undisturbed: Path, tmp_path: Path, line: str, ends: signal.Signals
) -> None:
    process, said = start(tmp_path, *race(tmp_path)), tmp_path / "said.log"
    status = strike(process, ends, tmp_path, line)
    assert status == (-ends if ends == signal.SIGKILL else 128 + ends), said.read_text()
    assert start(tmp_path, *race(tmp_path)).wait(900) == 0, said.read_text()
    for name in ("results.csv", "halving.json", "optimization_results.yaml", "recommendation.csv"):
        assert (tmp_path / "sweep" / name).read_bytes() == (undisturbed / "sweep" / name).read_bytes(), name
    assert [(trial.state, trial.params, trial.values) for trial in trials(tmp_path)] == [
        (trial.state, trial.params, trial.values) for trial in trials(undisturbed)
    ]
