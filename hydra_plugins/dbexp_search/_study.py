"""The study of a search: where it is kept, whose it is, and what of it is there."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from dbexp.config.schema import Config
from dbexp.config.values import flatten
from dbexp.core.errors import ConfigError, first_line, listed
from hydra_plugins.dbexp_search._space import Space

log = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
_FIXED = "dbexp"
"""Attribute of a study: the settings that all of its trials share."""
_held: list[FileLock] = []
"""Locks of studies that this process works on, until it ends."""


@dataclass(frozen=True)
class OpenStudy:
    """A study that this process works on.

    Attributes:
        study: Optuna's.
        space: what is searched.
        alone: whether no other process works on it, as far as that can be known: only of one that is in a file.
    """

    study: optuna.Study
    space: Space
    alone: bool

    def trials(self) -> list[FrozenTrial]:
        """Those that count, by number: they have all of their parameters, whatever became of them."""
        return [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state != TrialState.WAITING and self.space.has(trial.params)
        ]

    def interrupted(self) -> list[FrozenTrial]:
        """Trials that a process was at when it ended; their runs are to be gone on with.

        One that it had not yet asked all parameters of is told as failed, and counts for nothing.
        """
        if not self.alone:
            return []
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            if not self.space.has(trial.params):
                self.study.tell(trial.number, state=TrialState.FAIL)
        return [trial for trial in running if self.space.has(trial.params)]


def open_study(
    name: str | None, storage: str | None, directions: Sequence[str], space: Space, fixed: Mapping[str, Any]
) -> OpenStudy:
    """Begin a study, or go on with one.

    Args:
        name: of the study; None: one that nobody goes on with.
        storage: where it is kept; None: in memory.
        directions: minimize or maximize, of each objective.
        space: what is searched.
        fixed: parameter -> value of everything else; see `fixed_settings`.

    Raises:
        ConfigError: there is no such storage, or the study is another experiment's.
    """
    # its lines go where ours go, and only those that somebody can do something about
    optuna.logging.disable_default_handler()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fingerprint = {"fixed": dict(fixed), "searched": _choices(space), "directions": list(directions)}
    with _storage_errors(storage):
        where = place(storage)
        ways = [StudyDirection[direction.upper()] for direction in directions]
        study = optuna.create_study(study_name=name, storage=where, directions=ways, load_if_exists=True)
        alone = storage is None or _hold(study.study_name, storage)
        before = study.user_attrs.get(_FIXED)
        begun = any(trial.state != TrialState.WAITING for trial in study.get_trials(deepcopy=False))
        if begun and where is not None and (changes := _changes(before, fingerprint)):
            if not alone or any(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)):
                raise ConfigError(_refusal(name, changes))
            # it has no results, so nothing is lost: a mistake of the first command has been mended, say
            optuna.delete_study(study_name=study.study_name, storage=where)
            study = optuna.create_study(study_name=name, storage=where, directions=ways)
        study.set_user_attr(_FIXED, fingerprint)
    return OpenStudy(study, space, alone)


def place(storage: str | None) -> str | JournalStorage | None:
    """What Optuna calls a storage: a URL as it is, any other word is the name of a journal file."""
    return storage if storage is None or "://" in storage else JournalStorage(JournalFileBackend(storage))


@contextmanager
def _storage_errors(storage: str | None) -> Iterator[None]:
    """Word what databases say of a storage that they cannot open."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # of SQLAlchemy, of each database's driver, of the file system
        raise ConfigError(
            f"hydra.sweeper.storage={storage}: {first_line(error)}; write sqlite:///FILE.db, the URL of another "
            "database, or the name of a journal file"
        ) from error


def _hold(name: str, storage: str) -> bool:
    """Take the study's lock for as long as this process lives; False if another process works on it, or may do so.

    Only of a study in a file beside which a lock can be put it is known to be nobody else's.
    """
    if "://" in storage and not storage.startswith(_SQLITE):
        return False
    lock = FileLock(f"{storage.removeprefix(_SQLITE)}.{name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        log.info("study %s: another process works on it, too", name)
        return False
    _held.append(lock)
    return True


# -- whose it is -------------------------------------------------------------------------------------------------------


def _choices(space: Space) -> dict[str, Any]:
    """What of the searched parameters must stay: their names, and choices; the ends of an interval may move."""
    return {name: list(getattr(kind, "choices", ())) for name, kind in space.searched.items()}


def _changes(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """What is not as it was when a study was begun, in words; empty: it is the same experiment."""
    if before is None:
        return ["it was begun by another program"]
    changes = []
    if before["directions"] != now["directions"]:
        changes.append(f"direction was {'+'.join(before['directions'])} and is {'+'.join(now['directions'])}")
    for name in sorted({*before["searched"], *now["searched"]}):
        old, new = before["searched"].get(name), now["searched"].get(name)
        if old is None or new is None:
            changes.append(f"{name} was {_searched(old)} and is {_searched(new)}")
        elif old != new:
            changes.append(f"{name} had the choices {_listed(old)} and has {_listed(new)}")
    # a parameter that came with a newer version was, before, what its default is
    defaults = flatten(asdict(Config()))
    for name in sorted({*before["fixed"], *now["fixed"]} - {*before["searched"], *now["searched"]}):
        old, new = (side.get(name, defaults.get(name)) for side in (before["fixed"], now["fixed"]))
        if old != new:
            changes.append(f"{name} was {old} and is {new}")
    return changes


def _searched(choices: list[Any] | None) -> str:
    return "fixed" if choices is None else "searched"


def _listed(choices: Sequence[Any]) -> str:
    return ",".join(map(str, choices)) or "of an interval"


def _refusal(name: str | None, changes: Sequence[str]) -> str:
    return (
        f"hydra.sweeper.study_name={name}: is the study of another experiment ({listed(changes, 5)}); "
        "hydra.sweeper.study_name=NAME begins a new one"
    )
