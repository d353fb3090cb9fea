"""The settings of a search, under `hydra.sweeper`. Every Hydra program of the environment imports this file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class SearchSweeperConf:
    """Settings of the sweeper: for Hydra the schema, for the sweeper their values. Names are those of Hydra's plugin
    for Optuna."""

    _target_: str = "hydra_plugins.dbexp_search.sweeper.SearchSweeper"
    _convert_: str = "object"
    _recursive_: bool = False
    sampler: dict[str, Any] = field(default_factory=dict)
    """Who proposes: a class of optuna.samplers and its arguments; an option of hydra/sweeper/sampler."""
    direction: Any = None
    """minimize or maximize, of several objectives a list; null: as the columns that `objective` names get better."""
    storage: str | None = None
    """Where the study is kept: a URL, as sqlite:///search.db, or the name of a journal file; null: in memory."""
    study_name: str | None = None
    """Name of the study; the same name goes on with it."""
    n_trials: int = 20
    """Trials that the study shall have, all in all."""
    n_jobs: int = 2
    """Trials that are asked for at a time: they train together."""
    max_failure_rate: float = 0.0
    """Part of a batch that may fail before the search ends."""
    params: dict[str, Any] | None = None
    """Parameter -> its value, or what is searched, in Hydra's grammar: choice(...), range(...), interval(...),
    tag(log,interval(...)). The command line says the same, and wins."""
