"""Listing and pruning the store."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dbexp.core.errors import ConfigError
from dbexp.core.files import link, write_atomic
from dbexp.core.store import MANIFEST, Store, lock_of
from dbexp.core.store_listing import Item, items, prune, show, to_prune, verify

DAY, NOW = 86400.0, 1e9


def item(name: str, days: float, size: int = 10**9) -> Item:
    return Item("train", Path(name), size, 0, NOW - days * DAY, True)


class TestToPrune:
    FOUND = (item("old", 9), item("new", 1), item("middle", 5), item("busy", 0.01))

    @pytest.mark.parametrize(
        ("days", "size", "expected"),
        [
            (None, None, []),
            (7, None, ["old"]),
            (0, None, ["old", "middle", "new"]),
            (None, 4, []),
            (None, 2.5, ["old", "middle"]),
            (None, 0, ["old", "middle", "new"]),
            (7, 2, ["old", "middle"]),
        ],
        ids=str,
    )
    def test_oldest_first_and_nothing_in_use(self, days: float | None, size: float | None, expected: list[str]) -> None:
        chosen = to_prune(self.FOUND, older_than_days=days, to_size_gb=size, now=NOW)
        assert [one.path.name for one in chosen] == expected


def make(store: Store, name: str, size: int, days: float = 0.0) -> Path:
    """An entry that was last used so long ago."""
    folder = store.get("train", {"name": name}, lambda folder: write_atomic(folder / "lora", b"x" * size))
    age(folder / MANIFEST, days)
    return folder


def age(path: Path, days: float) -> None:
    os.utime(path, (time.time() - days * DAY,) * 2)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_is_there(store: Store, tmp_path: Path, console: Console) -> None:
    folder = make(store, "a", 5000)
    link(folder / "lora", tmp_path / "run" / "lora", copy_bytes=0)
    make(store, "b", 3000)
    write_atomic(store.partial("sample", {"name": "c"}) / "0.png", b"x" * 700)
    write_atomic(store.root / "features" / "ab" / "cd.npy", b"x" * 100)
    show(store, console)
    lines = printed(console).splitlines()
    assert lines[0].startswith(f"{store.root}: 4 entries, 9.") and lines[0].endswith("5.0 kB of it linked by runs")
    cells = {line.split()[0]: line.split() for line in lines[3:]}
    assert cells["train"][1] == "2" and cells["train"][4:6] == ["5.0", "kB"]
    assert cells["sample"][1:6] == ["1", "700", "bytes", "0", "bytes"] and cells["sample"][6] == "1"
    assert cells["features"][1:4] == ["1", "100", "bytes"]


def test_by_age(store: Store, console: Console) -> None:
    old, new = make(store, "old", 100, days=9), make(store, "new", 100, days=2)
    broken = store.partial("sample", {"name": "c"}) / "0.png"
    write_atomic(broken, b"x")
    age(broken, 30)
    assert prune(store, older_than_days=7, dry_run=True, console=console) > 100
    assert old.exists() and broken.exists()
    prune(store, older_than_days=7, console=console)
    assert not old.exists() and not broken.parent.exists() and new.exists()
    assert "would delete 2 entries" in printed(console) and ": deleted 2 entries" in printed(console)
    assert store.find("train", {"name": "old"}) is None
    make(store, "old", 100)


def test_finding_an_entry_is_using_it(store: Store, console: Console) -> None:
    folder = make(store, "a", 100, days=9)
    assert store.find("train", {"name": "a"}) == folder
    assert prune(store, older_than_days=7, console=console) == 0
    age(folder / MANIFEST, 9)
    make_again = store.get("train", {"name": "a"}, lambda _: pytest.fail("it is there"))
    assert make_again == folder and prune(store, older_than_days=7, console=console) == 0


def test_to_a_size(store: Store, console: Console) -> None:
    oldest, newest = make(store, "a", 5000, days=3), make(store, "b", 5000, days=2)
    prune(store, to_size_gb=7e-6, console=console)
    assert not oldest.exists() and newest.exists()


def test_what_somebody_holds_is_left(store: Store, console: Console) -> None:
    held, free = make(store, "a", 100, days=9), make(store, "b", 100, days=9)
    with lock_of(held):
        prune(store, older_than_days=7, console=console)
    assert held.exists() and not free.exists()
    assert "in use, and left: 1 entry" in printed(console)


class TestVerify:
    def test_all_whole(self, store: Store, console: Console) -> None:
        make(store, "a", 100)
        make(store, "b", 100)
        verify(store, console)
        assert "2 entries, " in printed(console) and "all are whole" in printed(console)

    def test_what_is_damaged_is_named_and_made_again_when_it_is_used(self, store: Store, console: Console) -> None:
        whole, flipped, mangled = (make(store, name, 100) for name in ("a", "b", "c"))
        file = next(path for path in flipped.iterdir() if path.name != MANIFEST)
        state = file.stat()
        file.chmod(0o644)
        file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
        (mangled / MANIFEST).write_text("{")
        with pytest.raises(ConfigError, match=f"^store={store.root}: 2 entries of 3 damaged; the next use"):
            verify(store, console)
        text = printed(console)
        assert "2 of 3 entries are damaged" in text
        assert file.name in text and flipped.name[:12] in text and mangled.name[:12] in text and MANIFEST in text
        assert whole.name[:12] not in text
        assert whole.exists() and flipped.exists(), "nothing is deleted"
        assert store.find("train", {"name": "b"}) is None and store.find("train", {"name": "a"}) == whole
        assert make(store, "b", 100) == flipped
        assert make(store, "c", 100) == mangled
        verify(store, console)

    def test_an_interrupted_entry_is_no_damage(self, store: Store, console: Console) -> None:
        store.partial("train", {"name": "a"}).mkdir(parents=True)
        verify(store, console)


def test_an_empty_store(store: Store, console: Console) -> None:
    assert items(store) == []
    show(store, console)
    assert prune(store, older_than_days=1, console=console) == 0
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({}, "give an age or a size"),
        ({"older_than_days": -1}, "prune_older_than=-1: must not be negative"),
        ({"older_than_days": -1, "to_size_gb": -2}, "prune_to_size=-2"),
    ],
)
def test_limits_that_make_no_sense(store: Store, limits: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        prune(store, **limits)
