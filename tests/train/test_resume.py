"""What an interrupted pack goes on from; that packs go on to the same bytes is in test_sweep and test_kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from threading import Thread

import pytest

from dbexp.core.files import TEMPORARY
from dbexp.core.store import PACKS, Store, lock_of
from dbexp.train.resume import PackState, begun, resume

PACK = PackState(("lane",), (("train/ab/abc",),), {"unet": 4})


@pytest.fixture
def stray(tmp_path: Path) -> Path:
    """Half a file, from a process that is no more: that of a pack of other lanes, described or not."""
    path = tmp_path / PACKS / f".0123.json.4567{TEMPORARY}"
    path.parent.mkdir()
    path.write_text('{"version"')
    return path


def test_what_a_killed_process_left_is_swept_up(tmp_path: Path, stray: Path) -> None:
    store = Store(tmp_path)
    PACK.begin(store)
    assert not stray.exists()
    PACK.save(store, [{"micro": 1}])
    assert begun(store) == [PACK]
    PACK.end(store)
    assert not list((tmp_path / PACKS).iterdir())


def test_a_file_that_is_being_written_stays(tmp_path: Path, stray: Path) -> None:
    """Its writer holds the folder."""
    other = Thread(target=PACK.begin, args=[Store(tmp_path)])
    with lock_of(tmp_path / PACKS):
        other.start()
        other.join(0.5)
        assert other.is_alive() and stray.exists()
    other.join(30)
    assert not stray.exists() and begun(Store(tmp_path)) == [PACK]


def test_a_state_that_is_kept_outlives_its_pack_and_others(tmp_path: Path) -> None:
    """A longer training of the same lanes goes on from it."""
    store = Store(tmp_path)
    (tmp_path / "train/ab/abc").mkdir(parents=True)
    kept, longer = replace(PACK, keep=True), replace(PACK, entries=(("train/cd/cde",),))
    kept.begin(store)
    kept.save(store, [{"micro": 3}])
    kept.end(store)
    assert begun(store) == [kept]
    assert resume(store, longer)[1] == {"lane": {"micro": 3}}
    longer.begin(store)
    longer.end(store)
    assert begun(store) == [kept]
