"""Files that are written whole or not at all, and shared without being bound to each other; names and JSON of files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import dbexp
from dbexp.core import files
from dbexp.core.files import COPY_BYTES, link, link_tree, locate, readable, seal, sweep_up, write_atomic
from dbexp.evaluate.backbones.base import origin


def test_what_ships_with_dbexp_is_found_beside_the_code() -> None:
    assert (
        locate("package:storybook/world/world.py") == Path(dbexp.__file__).parent / "storybook" / "world" / "world.py"
    )
    assert locate("package:storybook/world/world.py").is_file()


def test_everything_else_is_a_path_of_the_user() -> None:
    assert locate("~/weights").parent == Path.home()
    assert locate("weights/a.safetensors") == Path("weights/a.safetensors")


def test_a_backbone_is_called_the_same_wherever_dbexp_is_installed() -> None:
    assert origin("package:storybook/weights/metrics/dino/dino.safetensors").startswith("package:storybook")
    assert origin("elsewhere/dino.pth") == "file"


def test_an_entry_a_line_to_some_depth() -> None:
    value = {
        "a": {"pictures": [{"path": "ä.png", "values": {"dino": 0.5}}, {"path": "b", "values": {}}]},
        "b": [1, None],
    }
    assert readable(value).splitlines() == [
        "{",
        ' "a": {',
        '  "pictures": [',
        '   {"path": "ä.png", "values": {"dino": 0.5}},',
        '   {"path": "b", "values": {}}',
        "  ]",
        " },",
        ' "b": [',
        "  1,",
        "  null",
        " ]",
        "}",
    ]


def test_it_is_the_same_value() -> None:
    values: list[Any] = [{}, [], {"a": {}, "b": []}, 'quotes " and\nlines', 0.1, {"1": [[[[1, 2], {"x": [True]}]]]}]
    for value in values:
        for depth in range(5):
            assert json.loads(readable(value, depth)) == value


def test_write_atomic_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_write_atomic_leaves_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_turns_out_to_be_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_atomic(tmp_path / "a.txt", "new")
    assert caught.value.filename == str(tmp_path / "a.txt")


def test_what_killed_processes_left_is_swept_up_and_live_ones_write_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
        return path

    others = [left("a.tmp"), left(".mine.tmp"), left(".a.txt.12345678")]
    strays = [left(".a[1].txt.0123abcd.tmp"), left(".b.txt.0123abcd.tmp"), left("below/.a[1].txt.0123abcd.tmp")]
    sweep_up(tmp_path / "nowhere", below=True)
    for name, below, rest in (("a[1].txt", False, strays[1:]), (None, False, strays[2:]), (None, True, [])):
        sweep_up(tmp_path, name, below=below)
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([*others, *rest])

    replace, calls = os.replace, []

    def meanwhile(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) % 2:
            sweep_up(tmp_path)
        replace(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    write_atomic(tmp_path / "new", "whole")
    link(tmp_path / "new", tmp_path / "copy")
    assert (tmp_path / "new").read_text() == (tmp_path / "copy").read_text() == "whole" and len(calls) == 4

    def always(source: Path, target: Path) -> None:
        sweep_up(tmp_path)
        replace(source, target)

    monkeypatch.setattr(os, "replace", always)
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "never", "whole")


def sealed(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
    seal(path)
    return path


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """No seal stops this user."""
    monkeypatch.setattr(os, "access", lambda *_: True)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seals stop this user."""
    monkeypatch.setattr(os, "access", lambda path, _: bool(Path(path).stat().st_mode & 0o222))


class TestLink:
    @pytest.mark.parametrize("size", [0, 10, COPY_BYTES])
    @pytest.mark.usefixtures("root")
    def test_small_files_are_copied_for_root_with_their_time(self, tmp_path: Path, size: int) -> None:
        source, target = sealed(tmp_path / "a", size), tmp_path / "deep" / "b"
        link(source, target)
        assert target.read_bytes() == source.read_bytes() and not target.samefile(source)
        assert target.stat().st_mtime_ns == source.stat().st_mtime_ns
        assert target.stat().st_mode & 0o200, "a copy is the user's to write to"
        assert list(target.parent.iterdir()) == [target]

    @pytest.mark.skipif(os.name != "posix", reason="elsewhere all are copied")
    @pytest.mark.usefixtures("nobody")
    def test_sealed_files_are_linked_for_others(self, tmp_path: Path) -> None:
        link(sealed(tmp_path / "a", 10), tmp_path / "b")
        assert (tmp_path / "b").samefile(tmp_path / "a")
        (tmp_path / "c").write_text("not sealed")
        link(tmp_path / "c", tmp_path / "d")
        assert not (tmp_path / "d").samefile(tmp_path / "c")

    @pytest.mark.skipif(os.name != "posix", reason="elsewhere all are copied")
    def test_large_sealed_files_are_linked(self, tmp_path: Path) -> None:
        source = sealed(tmp_path / "a", COPY_BYTES + 1)
        link(source, tmp_path / "b")
        assert (tmp_path / "b").samefile(source)

    def test_what_anybody_may_write_to_is_copied_however_large(self, tmp_path: Path) -> None:
        """A photograph of the user's: neither the run nor the original follows when the other changes."""
        source, target = tmp_path / "a.jpg", tmp_path / "run" / "00.jpg"
        source.write_bytes(bytes(COPY_BYTES + 1))
        link(source, target)
        target.write_bytes(b"edited")
        assert source.stat().st_size == COPY_BYTES + 1
        assert source.stat().st_mode & 0o200, "rights of the user's files are left alone"

    def test_what_is_there_is_left_and_what_was_changed_is_brought_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for size in (10, COPY_BYTES + 1):
            source, target = sealed(tmp_path / f"{size}", size), tmp_path / f"{size} in a run"
            link(source, target)
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", lambda *_: pytest.fail("it was there"))
                link(source, target)
            target.unlink()
            target.write_bytes(b"x" * size)
            link(source, target)
            assert target.read_bytes() == source.read_bytes()

    @pytest.mark.usefixtures("root")
    def test_a_writable_link_of_an_older_version_is_cut(self, tmp_path: Path) -> None:
        source = sealed(tmp_path / "a", 10)
        os.link(source, tmp_path / "b")
        link(source, tmp_path / "b")
        assert not (tmp_path / "b").samefile(source)

    def test_another_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def other_disk(*_: object) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", other_disk)
        source = sealed(tmp_path / "a", COPY_BYTES + 1)
        link(source, tmp_path / "b")
        assert (tmp_path / "b").read_bytes() == source.read_bytes() and not (tmp_path / "b").samefile(source)
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "copyfile", lambda *_: pytest.fail("it was there"))
            link(source, tmp_path / "b")

    @pytest.mark.skipif(sys.platform != "linux", reason="copy on write is asked for by Linux's name")
    def test_a_file_system_that_shares_blocks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import fcntl

        calls = []

        def clone(target: int, request: int, source: int) -> None:
            assert request == 0x40049409
            calls.append(os.write(target, os.pread(source, 1 << 30, 0)))

        monkeypatch.setattr(files, "_cannot_clone", set())
        monkeypatch.setattr(fcntl, "ioctl", clone)
        monkeypatch.setattr(os, "link", lambda *_: pytest.fail("a clone is better"))
        source = sealed(tmp_path / "a", COPY_BYTES + 1)
        link(source, tmp_path / "b")
        assert calls == [COPY_BYTES + 1] and (tmp_path / "b").read_bytes() == source.read_bytes()
        assert (tmp_path / "b").stat().st_mtime_ns == source.stat().st_mtime_ns

    def test_a_full_disk_is_named_and_leaves_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(source: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

        monkeypatch.setattr(shutil, "copyfile", full)
        (tmp_path / "a").write_text("a")
        with pytest.raises(OSError, match="No space") as caught:
            link(tmp_path / "a", tmp_path / "run" / "b")
        assert caught.value.filename == str(tmp_path / "run" / "b")
        assert list((tmp_path / "run").iterdir()) == []

    def test_what_is_no_file_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        for source in (tmp_path / "pipe", tmp_path):
            with pytest.raises(OSError, match="is no regular file"):
                link(source, tmp_path / "b")
        (tmp_path / "dangling").symlink_to(tmp_path / "gone")
        with pytest.raises(FileNotFoundError):
            link(tmp_path / "dangling", tmp_path / "b")


@pytest.mark.parametrize("size", [10, COPY_BYTES + 1])
@pytest.mark.parametrize("readable_only", [False, True])
def test_behind_links_as_the_cache_of_the_hub_has_them(tmp_path: Path, size: int, readable_only: bool) -> None:
    blob = tmp_path / "hub" / "blobs" / "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(size))
    if readable_only:
        seal(blob)
    snapshot = tmp_path / "hub" / "snapshots" / "abc" / "dog"
    snapshot.mkdir(parents=True)
    (snapshot / "00.jpg").symlink_to(Path("../../../blobs") / blob.name)
    (tmp_path / "dogs").symlink_to(snapshot)
    link(tmp_path / "dogs" / "00.jpg", tmp_path / "run" / "00.jpg")
    link_tree(tmp_path / "dogs", tmp_path / "tree")
    shutil.rmtree(tmp_path / "hub")
    for path in (tmp_path / "run" / "00.jpg", tmp_path / "tree" / "00.jpg"):
        assert not path.is_symlink() and path.read_bytes() == bytes(size)


def test_a_tree_with_links_to_folders_and_around_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "c").write_text("c")
    source = tmp_path / "source"
    (source / "a").mkdir(parents=True)
    (source / "a" / "b").write_text("b")
    (source / "skipped").write_text("")
    (source / "elsewhere").symlink_to(tmp_path / "other")
    (source / "again").symlink_to(source / "a")
    (source / "a" / "up").symlink_to(source)
    link_tree(source, tmp_path / "run", skip="skipped")
    paths = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert sorted(path.relative_to(tmp_path / "run").as_posix() for path in paths) == [
        "a/b",
        "again/b",
        "elsewhere/deep/c",
    ]
