"""A store whose files lose bits, and run folders that somebody edits: results stay what they were."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dbexp.core import store as stores
from dbexp.core.hashing import file_hash
from dbexp.core.store import MANIFEST, Store
from tests.sweeps import dbexp_command, tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store and a run, `run`."""
    folder = tmp_path_factory.mktemp("damage")
    again(folder, "run")
    return folder


def again(folder: Path, name: str, *more: str) -> str:
    """Do the run in a folder of its own as a process would that has just started; what it said."""
    stores._checked.clear()
    outcome = dbexp_command(folder, *tiny(folder / "store"), f"hydra.run.dir={name}", *more)
    assert outcome.status == 0, outcome.err
    return outcome.err


def numbers(run: Path) -> Any:
    return json.loads((run / "evaluate" / "metrics.json").read_text())["report"]["rows"]


def files(folder: Path) -> dict[str, str]:
    """Relative path -> hash of what a run has from the store."""
    stages = ("dataset", "prior", "sample", "train")
    paths = (path for stage in stages for path in sorted((folder / stage).rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in paths}


def entries(store: Path) -> Iterator[Path]:
    return (path.parent for path in sorted(store.glob(f"*/??/*/{MANIFEST}")))


def flip(path: Path) -> None:
    """Change a bit, and neither size nor time."""
    state = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_bit_lost_in_every_file_of_the_store(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "store", tmp_path / "store")
    damaged = list(entries(tmp_path / "store"))
    for entry in damaged:
        for path in entry.rglob("*"):
            if path.is_file() and path.name != MANIFEST:
                flip(path)
    for path in (tmp_path / "store" / "features").rglob("*.npy"):
        flip(path)
    stages = {entry.parents[1].name for entry in damaged}
    assert stages >= {"evaluate", "latents", "prior", "sample", "sheet", "train"}
    said = again(tmp_path, "run")
    assert said.count("is damaged and is made again") >= len(stages)
    assert numbers(tmp_path / "run") == numbers(finished / "run")
    timed = {"train/train.json": ""}  # has the seconds that training took
    assert files(tmp_path / "run") | timed == files(finished / "run") | timed
    store = Store(tmp_path / "store")
    left = {entry.parents[1].name for entry in entries(tmp_path / "store") if store.damaged(entry)}
    assert left <= {"backbone"}, "this process holds its backbones in memory and did not ask for them"


def test_a_run_that_is_edited_changes_nothing_else(finished: Path) -> None:
    before = files(finished / "run")
    photographs = {path: file_hash(path) for path in pictures_of(finished)}
    again(finished, "edited")
    for name in before:
        with suppress(PermissionError), (finished / "edited" / name).open("r+b") as file:
            file.write(b"edited")
    again(finished, "after")
    assert files(finished / "run") == files(finished / "after") == before
    assert {path: file_hash(path) for path in photographs} == photographs
    said = again(finished, "edited")
    assert "damaged" not in said
    assert files(finished / "edited") == before, "what was edited is brought back by the same command"


def pictures_of(folder: Path) -> list[Path]:
    """The photographs that the run was given."""
    option = next(word for word in tiny(folder / "store") if word.startswith("dataset.path="))
    return sorted(Path(option.partition("=")[2]).iterdir())


def test_photographs_behind_links_of_a_hub_cache(finished: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "abc" / "rex"
    snapshot.mkdir(parents=True)
    (tmp_path / "hub" / "blobs").mkdir()
    for path in pictures_of(finished):
        blob = tmp_path / "hub" / "blobs" / file_hash(path)
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("../../../blobs") / blob.name)
    (tmp_path / "rex").symlink_to(snapshot)
    again(finished, "linked", f"dataset.path={tmp_path / 'rex'}", "dataset.name=folder")
    shutil.rmtree(tmp_path / "hub")
    here = sorted((finished / "linked" / "dataset").iterdir())
    assert [file_hash(path) for path in here] == [file_hash(path) for path in pictures_of(finished)]
    assert not any(path.is_symlink() for path in here)
    assert numbers(finished / "linked") == numbers(finished / "run")
