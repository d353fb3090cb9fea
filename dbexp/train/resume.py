"""What an interrupted pack goes on from: the state of all its lanes at one moment, in one file.

The lanes of a pack share their batches, and in floating point the sums of a batch depend on what else is in it, in the
last digit. So a pack that goes on must consist of the same lanes in the same slots at the same steps as before, or its
results would agree with those of an uninterrupted one only to rounding. On a CPU they are then equal bit by bit; on
a GPU, where some sums are added up in an order that changes, they agree to rounding all the same. One file, replaced
atomically, holds all lanes; a small one beside it, written before the first step, says who they are, so that they are
put together again.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dbexp.core.errors import first_line
from dbexp.core.files import TEMPORARY, write_atomic
from dbexp.core.hashing import key_of, with_hash, without_hash
from dbexp.core.store import PACKS, Store, lock_of

log = logging.getLogger(__name__)

_VERSION = 1


@dataclass(frozen=True)
class PackState:
    """A pack in progress.

    Attributes:
        lanes: for each slot the key of its lane: of everything that decides its steps but how many there are.
        entries: for each slot the store's folders, relative to its root, that the lane's runs end in.
        ranks: part -> rank that slots have room for.
        keep: whether its states outlive it, for trainings that go on from where its runs end.
    """

    lanes: tuple[str, ...]
    entries: tuple[tuple[str, ...], ...]
    ranks: Mapping[str, int]
    keep: bool = False

    def path(self, store: Store) -> Path:
        """The file that describes it; the states are in its sibling `.pt`."""
        return store.root / PACKS / f"{key_of({'version': _VERSION, 'entries': self.entries})}.json"

    def begin(self, store: Store) -> None:
        """Remember who trains together."""
        with _alone(store):
            self._describe(store)

    def save(self, store: Store, states: Sequence[Mapping[str, Any]]) -> None:
        """Replace the states of all lanes, slot by slot, at once."""
        buffer = io.BytesIO()
        torch.save(dict(zip(self.lanes, states, strict=True)), buffer)
        with _alone(store):
            self._describe(store)  # anew: who prunes the store sees by its time that it is in use
            write_atomic(_states(self.path(store)), with_hash(buffer.getvalue()))

    def end(self, store: Store) -> None:
        """Forget it: all of its runs are where they will stay. So are those of others, perhaps."""
        with _alone(store):
            if not self.keep:
                _delete(self.path(store))
            for path, other in _all(store):
                if not other.keep and all((store.root / entry).is_dir() for lane in other.entries for entry in lane):
                    _delete(path)

    def give_up(self, store: Store) -> None:
        """Forget it if it has come nowhere."""
        with _alone(store):
            if not _states(self.path(store)).exists():
                _delete(self.path(store))

    def _describe(self, store: Store) -> None:
        write_atomic(self.path(store), json.dumps({"version": _VERSION, **asdict(self)}, indent=1))


def begun(store: Store) -> list[PackState]:
    """Packs that were begun and did not end, the latest first."""
    latest_first = sorted(_all(store), key=lambda pair: -_time(pair[0]))
    return [pack for _, pack in latest_first]


def together(packs: Sequence[PackState], entries: Sequence[str]) -> list[list[int]]:
    """Gather entries that were begun together.

    Args:
        packs: from `begun`.
        entries: the store's folders of runs, relative to its root.

    Returns:
        Indices of `entries` for each pack that any of them belong to; those that were never begun are in none.
    """
    owners_of: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        owners = (number for number, pack in enumerate(packs) if any(entry in lane for lane in pack.entries))
        if (owner := next(owners, None)) is not None:
            owners_of.setdefault(owner, []).append(index)
    return list(owners_of.values())


def resume(store: Store, fresh: PackState) -> tuple[PackState, dict[str, dict[str, Any]]]:
    """What a pack goes on from.

    Args:
        store: with what was begun.
        fresh: the pack as it would be if nothing had been begun; of lanes that have finished there is nothing in it.

    Returns:
        The pack, with room for the ranks of those it was begun with, and key of a lane -> its latest state.
    """
    states: dict[str, dict[str, Any]] = {}
    ranks = dict(fresh.ranks)
    for pack in begun(store):
        if not set(pack.lanes) & set(fresh.lanes):
            continue
        for lane, state in _load(_states(pack.path(store))).items():
            if lane in fresh.lanes and state["micro"] > states.get(lane, {"micro": 0})["micro"]:
                states[lane] = state
        if set(fresh.lanes) <= set(pack.lanes):
            ranks = {part: max(rank, pack.ranks.get(part, 0)) for part, rank in ranks.items()}
    return replace(fresh, ranks=ranks), states


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """Hold the folder of packs. What is half written in it by then is left from a process that was killed."""
    folder = store.root / PACKS
    folder.mkdir(parents=True, exist_ok=True)
    with lock_of(folder):
        for stray in folder.glob(f".*{TEMPORARY}"):
            stray.unlink()
        yield


def _all(store: Store) -> Iterator[tuple[Path, PackState]]:
    for path in sorted((store.root / PACKS).glob("*.json")):
        try:
            record = json.loads(path.read_text())
            if record["version"] == _VERSION:
                entries = tuple(tuple(lane) for lane in record["entries"])
                yield path, PackState(tuple(record["lanes"]), entries, record["ranks"], record.get("keep", False))
        except (OSError, ValueError, KeyError, TypeError):  # another process has just ended it, or it is not ours
            continue


def _states(path: Path) -> Path:
    return path.with_suffix(".pt")


def _load(path: Path) -> dict[str, dict[str, Any]]:
    """States by lane, on the CPU; none where nothing was saved yet, or what was saved is damaged."""
    if not path.exists():
        return {}
    try:
        content = io.BytesIO(without_hash(path.read_bytes()))
        loaded: dict[str, dict[str, Any]] = torch.load(content, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises whatever it makes torch stumble over
        log.warning("%s is damaged (%s): what it was to go on from starts over", path, first_line(error))
        return {}
    return loaded


def _time(path: Path) -> float:
    """When a file was written; 0 if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _delete(path: Path) -> None:
    """Description last: states without it would never be found."""
    _states(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
