"""What the store holds, and making it smaller: by age, by size, never what somebody is using.

Everything in the store can be made again, so pruning costs time and nothing else. Runs keep what they link to: a file
that a run's folder shares with the store takes no less room until that folder goes too.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import Timeout
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbexp.core.errors import ConfigError, Problems, byte_size, count, listed
from dbexp.core.folders import PARTIAL
from dbexp.core.progress import progress
from dbexp.core.store import DOOMED, MANIFEST, PACKS, Store, lock_of, remove

_DAY, _GB = 86400.0, 10**9
_ENTRIES = "entry", "entries"
_WIDTH = 160
_MOST_NAMES = 4
IN_USE_SECONDS = 3600.0
"""What was used within the last hour may be in use: whoever only reads an entry holds no lock."""
_WHAT = {
    "model": "converted and random base models",
    "dataset": "downloaded subjects",
    "prior": "class images",
    "latents": "encoded pictures",
    "train": "LoRAs with their checkpoints",
    "lora": "LoRAs of other trainers",
    "sample": "samples and class images for PRES",
    "sheet": "contact sheets",
    "evaluate": "metric tables of sets of pictures",
    "features": "features and distances of metrics",
    "backbone": "what metric networks are called",
    "estimate": "counts of operations and memory",
    "tokens": "what is odd about the tokens of prompts",
    "hashes": "remembered hashes of files",
    PACKS: "states of interrupted packs",
}


@dataclass(frozen=True)
class Item:
    """Something that can be deleted on its own.

    Attributes:
        stage: folder of the store.
        path: of an entry's folder, or of a single file.
        bytes: in the store.
        shared: of them, in files that folders of runs link to as well.
        used: when it was last used (finished entries) or written, in seconds since the epoch.
        finished: False for an entry whose making was interrupted.
    """

    stage: str
    path: Path
    bytes: int
    shared: int
    used: float
    finished: bool


def items(store: Store) -> list[Item]:
    """Everything in a store, by stage."""
    members: list[Item] = []
    for stage in sorted(path for path in store.root.glob("*") if path.is_dir()):
        for path in sorted(stage.glob("*.*") if stage.name == PACKS else stage.glob("??/*")):
            if path.suffix != ".lock":
                with contextlib.suppress(FileNotFoundError):  # another process has just deleted or published it
                    members.append(_item(stage.name, path))
    return members


def _item(stage: str, path: Path) -> Item:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    states = [file.stat() for file in files]
    manifest = path / MANIFEST
    finished = not path.is_dir() or (manifest.is_file() and path.suffix != PARTIAL)
    times = [manifest.stat().st_mtime] if path.is_dir() and finished else [state.st_mtime for state in states]
    return Item(
        stage,
        path,
        sum(state.st_size for state in states),
        sum(state.st_size for state in states if state.st_nlink > 1),
        max(times, default=path.stat().st_mtime),
        finished,
    )


def to_prune(
    members: Iterable[Item], *, older_than_days: float | None, to_size_gb: float | None, now: float
) -> list[Item]:
    """What to delete: all that was not used for so long; then what was not used longest, until the rest fits.

    Args:
        members: from `items`.
        older_than_days: age from which on everything goes; None: no matter how old.
        to_size_gb: size of what is to be left, in GB of 10^9 bytes; None: no matter how large.
        now: in seconds since the epoch.
    """
    oldest_first = sorted(members, key=lambda item: (item.used, str(item.path)))
    size = sum(item.bytes for item in oldest_first)
    candidates = []
    for item in oldest_first:
        age = now - item.used
        too_old = older_than_days is not None and age > older_than_days * _DAY
        too_much = to_size_gb is not None and size > to_size_gb * _GB
        if age > IN_USE_SECONDS and (too_old or too_much):
            candidates.append(item)
            size -= item.bytes
    return candidates


def show(store: Store, console: Console | None = None) -> None:
    """Print what a store holds: a line per stage.

    Args:
        store: to look at.
        console: where to; None: standard output.
    """
    console = console or _standard_output()
    everything = items(store)
    grid = Table()
    for heading in ("stage", "entries", "size", "linked by runs", "unfinished", "last used", "what"):
        grid.add_column(heading, justify="right" if heading in ("entries", "size", "linked by runs") else "left")
    for stage, members in _by_stage(everything):
        unfinished = sum(not item.finished for item in members)
        last = time.strftime("%Y-%m-%d %H:%M", time.localtime(max(item.used for item in members)))
        sizes = (byte_size(sum(item.bytes for item in members)), byte_size(sum(item.shared for item in members)))
        grid.add_row(stage, str(len(members)), *sizes, str(unfinished or ""), last, _WHAT.get(stage, ""))
    whole, shared = sum(item.bytes for item in everything), sum(item.shared for item in everything)
    sizes = (byte_size(whole), f"{byte_size(shared)} of it linked by runs")
    _print(f"{store.root}: {', '.join([count(len(everything), *_ENTRIES), *sizes])}", grid, console)


def prune(
    store: Store,
    *,
    older_than_days: float | None = None,
    to_size_gb: float | None = None,
    dry_run: bool = False,
    console: Console | None = None,
) -> int:
    """Make a store smaller, and print what was deleted. What another process is making is left alone.

    Args:
        store: to prune.
        older_than_days, to_size_gb: see `to_prune`; at least one of them.
        dry_run: only print what would be deleted.
        console: where to; None: standard output.

    Returns:
        Bytes that went from the store.

    Raises:
        ConfigError: neither is given, or one is negative.
    """
    problems = Problems()
    limits = {"prune_older_than": older_than_days, "prune_to_size": to_size_gb}
    for name, value in limits.items():
        problems.require(value is None or value >= 0, f"{name}={value}: must not be negative")
    problems.raise_if_any()
    if older_than_days is None and to_size_gb is None:
        raise ConfigError("give an age or a size to prune to: prune_older_than=DAYS, prune_to_size=GB")
    console = console or _standard_output()
    candidates = to_prune(items(store), older_than_days=older_than_days, to_size_gb=to_size_gb, now=time.time())
    deletions = candidates if dry_run else [item for item in candidates if _delete(item)]
    grid = Table()
    for heading in ("stage", "entries", "size", "linked by runs"):
        grid.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, members in _by_stage(deletions):
        sizes = (byte_size(sum(item.bytes for item in members)), byte_size(sum(item.shared for item in members)))
        grid.add_row(stage, str(len(members)), *sizes)
    size = sum(item.bytes for item in deletions)
    verb = "would delete" if dry_run else "deleted"
    _print(f"{store.root}: {verb} {count(len(deletions), *_ENTRIES)}, {byte_size(size)}", grid, console)
    if len(deletions) < len(candidates):
        console.print(f"in use, and left: {count(len(candidates) - len(deletions), *_ENTRIES)}")
    return size


def verify(store: Store, console: Console | None = None) -> None:
    """Read every finished entry, and print what is not as it was when it was made.

    Args:
        store: to read. Nothing in it is deleted: the next use of a damaged entry makes it again.
        console: where to; None: standard output.

    Raises:
        ConfigError: something is damaged.
    """
    console = console or _standard_output()
    entries = [item for item in items(store) if item.path.is_dir() and item.finished]
    grid = Table()
    for heading in ("stage", "entry", "linked by runs", "damaged files"):
        grid.add_column(heading, overflow="fold")
    with progress("read the store", len(entries)) as bar:
        for item in entries:
            if names := _damaged(store, item.path):
                grid.add_row(item.stage, item.path.name[:12], byte_size(item.shared), Text(listed(names, _MOST_NAMES)))
            bar.advance()
    size = byte_size(sum(item.bytes for item in entries))
    if not grid.row_count:
        console.print(f"{store.root}: {count(len(entries), *_ENTRIES)}, {size}: all are whole")
        return
    _print(f"{store.root}: {grid.row_count} of {count(len(entries), *_ENTRIES)} are damaged", grid, console)
    raise ConfigError(
        f"store={store.root}: {count(grid.row_count, *_ENTRIES)} of {len(entries)} damaged; the next use of each makes "
        "it again, so repeat the commands of the runs that you need"
    )


def _damaged(store: Store, entry: Path) -> list[str]:
    try:
        return store.damaged(entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [MANIFEST] if entry.exists() else []  # another process may just have deleted it


def _delete(item: Item) -> bool:
    """Delete an item unless somebody holds it or has used it since; whether it is gone."""
    if not item.path.is_dir():
        item.path.unlink(missing_ok=True)
        return True
    if item.path.suffix == DOOMED:  # whoever was deleting it was stopped
        shutil.rmtree(item.path, ignore_errors=True)
        return True
    lock = lock_of(item.path.with_suffix("") if item.path.suffix == PARTIAL else item.path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        if not item.path.exists() or _item(item.stage, item.path).used > item.used:
            return False
        remove(item.path)
        return True
    finally:
        lock.release()


def _standard_output() -> Console:
    """A file or a pipe is as wide as it need be."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH)


def _print(title: str, grid: Table, console: Console) -> None:
    """Print a titled table without rules."""
    grid.box, grid.pad_edge, grid.padding = None, False, (0, 2, 0, 0)
    console.print(Text(title, style="bold"), Text(), grid, sep="\n")


def _by_stage(members: Sequence[Item]) -> Iterator[tuple[str, list[Item]]]:
    for stage in dict.fromkeys(item.stage for item in members):
        yield stage, [item for item in members if item.stage == stage]
