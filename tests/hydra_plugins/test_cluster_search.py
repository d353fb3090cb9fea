"""A search by Optuna that is killed: the same command goes on with its study, to the number of trials that was wanted.

It needs the extra `optuna`, in an environment of its own; without it the test is skipped.
"""

from __future__ import annotations

import importlib.util
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps import start, tiny

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
    deadline = time.monotonic() + 900
    while not second_pack_runs(tmp_path):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "said.log").read_text()
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    cut = [trial.params for trial in trials(tmp_path)]

    assert start(tmp_path, *command).wait(900) == 0, (tmp_path / "said.log").read_text()
    assert "2 of 4 trials are there, 2 of the others were interrupted" in (tmp_path / "said.log").read_text()
    assert states(tmp_path) == {"COMPLETE": 4}
    assert [trial.params for trial in trials(tmp_path)] == cut

    assert start(tmp_path, *command).wait(900) == 0, (tmp_path / "said.log").read_text()
    assert "nothing is left to ask for" in (tmp_path / "said.log").read_text()
    assert states(tmp_path) == {"COMPLETE": 4}
