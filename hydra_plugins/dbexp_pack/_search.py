"""A search that was begun before goes on: its interrupted trials first, then as many new ones as are still wanted.

Hydra's sweeper for Optuna asks `n_trials` more at every start, and leaves what a killed process was at for ever. Here
`n_trials` is the total that a study shall have, and a trial that no process works on any more is put back into the
study's queue, with the parameters that it had: what was trained of it is found in the store.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig, flag_override

log = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
_held: list[FileLock] = []
"""Locks of studies that this process works on, until it ends."""


def is_search(config: DictConfig) -> bool:
    """Whether a sweep is a search by Optuna whose study outlives it."""
    sweeper = config.hydra.sweeper
    named = bool(sweeper.get("storage")) and bool(sweeper.get("study_name"))
    return "optuna" in str(sweeper._target_).lower() and named


def resume(config: DictConfig) -> None:
    """Look at the study of a search before it starts, and leave in `n_trials` what is still to be asked for.

    Args:
        config: of the sweep, with its `hydra` node.
    """
    sweeper = config.hydra.sweeper
    name, url, total = str(sweeper.study_name), str(sweeper.storage), int(sweeper.n_trials)
    study = _load(name, url)
    exclusive = _hold(name, url)
    if study is None:
        return
    finished = sum(trial.state.is_finished() for trial in study.trials)
    interrupted = _put_back(study) if exclusive else 0
    remaining = max(0, total - finished)
    log.info(
        "study %s: %d of %d trials are there, %d of the others were interrupted", name, finished, total, interrupted
    )
    if not remaining:
        log.info("nothing is left to ask for; hydra.sweeper.n_trials=%d would ask for %d more", total + 8, 8)
        Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)  # the sweeper writes its results there
    with flag_override(sweeper, ["readonly", "struct"], [False, False]):
        sweeper.n_trials = remaining


def _load(name: str, url: str) -> Any | None:
    """The study; None if it was not begun."""
    import optuna

    try:
        with _quiet():
            return optuna.load_study(study_name=name, storage=url)
    except KeyError:
        return None


def _hold(name: str, url: str) -> bool:
    """Take the study's lock for as long as this process lives; False if another process works on it, or may do so.

    Only a study in a file beside which a lock can be put is known to be nobody else's.
    """
    if not url.startswith(_SQLITE):
        return False
    lock = FileLock(f"{url.removeprefix(_SQLITE)}.{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        log.info("study %s: another process works on it, too", name)
        return False
    _held.append(lock)
    return True


def _put_back(study: Any) -> int:
    """Queue the trials that were running; Optuna then asks for them first, with the parameters that they have."""
    from optuna.trial import TrialState

    running = [trial for trial in study.trials if trial.state == TrialState.RUNNING]
    for trial in running:
        # `tell` only ends a trial and `enqueue_trial` makes another; this was checked with Optuna 2.10.1, and Hydra's
        # sweeper takes no Optuna from 3 on
        study._storage.set_trial_state(trial._trial_id, TrialState.WAITING)
    return len(running)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna logs that a database was made; the sweeper will say so itself."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
