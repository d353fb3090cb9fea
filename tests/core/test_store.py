"""The store: made once, never half there, found again."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dbexp.core import store as store_module
from dbexp.core.errors import ConfigError
from dbexp.core.files import TREE_COPY_BYTES, link_tree, write_atomic
from dbexp.core.hashing import file_hash, key_of
from dbexp.core.store import MANIFEST, Store, _checked, remove

INPUTS: dict[str, Any] = {"version": 1, "model": "abc", "settings": {"rank": 4, "lr": 1e-4}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class Maker:
    """Writes two files and counts its calls; stops after the first file when told to."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.calls, self.error = 0, error
        self.seen: list[list[str]] = []

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        self.seen.append(sorted(path.name for path in folder.iterdir()))
        write_atomic(folder / "first.txt", "one")
        if self.error is not None:
            raise self.error
        write_atomic(folder / "deep" / "second.bin", b"\x00" * 100)


class TestKeys:
    def test_order_of_keys_is_nothing(self) -> None:
        assert key_of({"a": 1, "b": {"c": 2, "d": 3}}) == key_of({"b": {"d": 3, "c": 2}, "a": 1})

    def test_values_and_nesting_are_everything(self) -> None:
        variants: list[dict[str, Any]] = [
            {"a": 1},
            {"a": 1.5},
            {"a": "1"},
            {"a": None},
            {"a": [1]},
            {"a": [1, 1]},
            {"b": 1},
            {"a": {"a": 1}},
        ]
        assert len({key_of(variant) for variant in variants}) == len(variants)

    def test_order_of_lists_counts(self) -> None:
        assert key_of({"images": ["x", "y"]}) != key_of({"images": ["y", "x"]})

    def test_refuses_what_is_not_json(self) -> None:
        with pytest.raises(TypeError):
            key_of({"path": Path("x")})

    def test_file_hash(self, tmp_path: Path) -> None:
        path = tmp_path / "big"
        path.write_bytes(os.urandom(3 << 20))
        assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_remembered_hash_follows_the_file(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "weights"
        path.write_bytes(b"one")
        first = store.file_hash(path)
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "file_hash", lambda _: pytest.fail("it was hashed before"))
            assert store.file_hash(path) == first
            (tmp_path / "alias").symlink_to(path)
            assert store.file_hash(tmp_path / "alias") == first
        path.write_bytes(b"other")
        assert store.file_hash(path) == hashlib.sha256(b"other").hexdigest()


class TestGet:
    def test_made_once(self, store: Store) -> None:
        make = Maker()
        assert store.find("stage", INPUTS) is None
        folder = store.get("stage", INPUTS, make)
        assert store.get("stage", dict(reversed(INPUTS.items())), make) == folder == store.find("stage", INPUTS)
        assert make.calls == 1
        assert folder == store.path("stage", INPUTS)
        assert (folder / "first.txt").read_text() == "one"
        assert store.damaged(folder) == []

    def test_another_key_is_another_entry(self, store: Store) -> None:
        make = Maker()
        places = {
            store.get("stage", INPUTS, make),
            store.get("other", INPUTS, make),
            store.get("stage", INPUTS | {"version": 2}, make),
        }
        assert make.calls == len(places) == 3

    def test_manifest_tells_the_inputs_and_every_file(self, store: Store) -> None:
        folder = store.get("stage", INPUTS, Maker())
        manifest = json.loads((folder / MANIFEST).read_text())
        assert manifest["inputs"] == {"stage": "stage", **INPUTS}
        assert set(manifest["files"]) == {"first.txt", "deep/second.bin"}
        assert manifest["files"]["deep/second.bin"] == {
            "bytes": 100,
            "sha256": hashlib.sha256(bytes(100)).hexdigest(),
        }

    def test_an_exception_keeps_the_working_folder(self, store: Store) -> None:
        with pytest.raises(RuntimeError, match="power cut"):
            store.get("stage", INPUTS, Maker(RuntimeError("power cut")))
        assert store.find("stage", INPUTS) is None
        assert not store.path("stage", INPUTS).exists()
        assert (store.partial("stage", INPUTS) / "first.txt").exists()
        again = Maker()
        store.get("stage", INPUTS, again)
        assert again.seen == [["first.txt"]], "the second attempt sees what the first one left"
        assert not store.partial("stage", INPUTS).exists()

    def test_a_full_disk_publishes_nothing(self, store: Store) -> None:
        with pytest.raises(OSError, match="No space"):
            store.get("stage", INPUTS, Maker(OSError(errno.ENOSPC, "No space left on device")))
        assert store.find("stage", INPUTS) is None

    def test_a_full_disk_while_publishing(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path, data: str | bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

        make = Maker()
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "write_atomic", full)
            with pytest.raises(OSError, match="No space"):
                store.get("stage", INPUTS, make)
        assert store.find("stage", INPUTS) is None
        store.get("stage", INPUTS, make)
        assert store.find("stage", INPUTS) is not None

    def test_killed_between_manifest_and_rename(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        replace = os.replace

        def killed(source: Path, target: Path) -> None:
            if Path(target) == store.path("stage", INPUTS):
                raise KeyboardInterrupt
            replace(source, target)

        make = Maker()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                store.get("stage", INPUTS, make)
        assert (store.partial("stage", INPUTS) / MANIFEST).exists()
        folder = store.get("stage", INPUTS, make)
        assert store.get("stage", INPUTS, make) == folder
        assert make.calls == 2
        assert MANIFEST not in json.loads((folder / MANIFEST).read_text())["files"]

    def test_leftovers_of_a_killed_write_are_swept_up(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def make(folder: Path) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
                patch.setattr(os, "fsync", lambda _: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    write_atomic(folder / "state.pt", "half")
            write_atomic(folder / "first.txt", "one")

        folder = store.get("stage", INPUTS, make)
        assert sorted(path.name for path in folder.iterdir()) == ["first.txt", MANIFEST]


class TestDamage:
    @pytest.fixture
    def folder(self, store: Store) -> Path:
        return store.get("stage", INPUTS, Maker())

    def remade(self, store: Store, caplog: pytest.LogCaptureFixture) -> None:
        make = Maker()
        assert store.find("stage", INPUTS) is None
        folder = store.get("stage", INPUTS, make)
        assert make.calls == 1
        assert make.seen == [[]], "nothing of the damaged entry is reused"
        assert store.damaged(folder) == []
        assert "is damaged and is made again" in caplog.text
        assert not list(folder.parent.glob("*.doomed"))

    def flip(self, path: Path) -> None:
        """Change a byte, and neither size nor time: what a failing disk does."""
        state = path.stat()
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    @pytest.mark.parametrize("name", ["first.txt", "deep/second.bin"])
    def test_a_flipped_bit_is_seen_by_the_next_process(
        self, store: Store, folder: Path, caplog: pytest.LogCaptureFixture, name: str
    ) -> None:
        self.flip(folder / name)
        assert store.find("stage", INPUTS) == folder, "this process made it a moment ago"
        _checked.clear()
        self.remade(store, caplog)

    def test_bytes_of_the_same_number_written_by_somebody(
        self, store: Store, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (folder / "first.txt").chmod(0o644)
        (folder / "first.txt").write_text("two")
        self.remade(store, caplog)

    def test_large_files_are_read_when_their_size_or_time_is_new(
        self, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(store_module, "LARGE_BYTES", 50)
        _checked.clear()
        assert store.find("stage", INPUTS) == folder
        _checked.clear()
        with monkeypatch.context() as patch:
            read: list[str] = []

            def note(path: Path) -> str:
                read.append(path.name)
                return file_hash(path)

            patch.setattr(store_module, "file_hash", note)
            assert store.find("stage", INPUTS) == folder
            assert read == ["first.txt"]
        self.flip(folder / "deep" / "second.bin")
        _checked.clear()
        assert store.find("stage", INPUTS) == folder, "only --verify reads it again"
        assert store.damaged(folder) == ["deep/second.bin"]
        self.remade(store, caplog)

    def test_a_manifest_of_another_entry(self, store: Store, folder: Path) -> None:
        text = (folder / MANIFEST).read_text()
        (folder / MANIFEST).write_text(text.replace('"rank": 4', '"rank": 5'))
        with pytest.raises(ValueError, match="not that of this entry"):
            store.damaged(folder)

    def test_truncated_file(self, store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        (folder / "deep" / "second.bin").chmod(0o644)
        (folder / "deep" / "second.bin").write_bytes(b"\x00" * 99)
        self.remade(store, caplog)

    def test_missing_file(self, store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        (folder / "first.txt").unlink()
        self.remade(store, caplog)

    def test_missing_manifest(self, store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        (folder / MANIFEST).unlink()
        self.remade(store, caplog)

    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": {"first.txt": 3}}'])
    def test_mangled_manifest(self, store: Store, folder: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
        (folder / MANIFEST).write_text(content)
        self.remade(store, caplog)

    def test_reading_all_bytes(self, store: Store, folder: Path) -> None:
        assert store.damaged(folder) == []
        self.flip(folder / "deep" / "second.bin")
        assert store.damaged(folder) == ["deep/second.bin"]
        (folder / "first.txt").unlink()
        assert sorted(store.damaged(folder)) == ["deep/second.bin", "first.txt"]


class TestClaim:
    def test_fill_and_publish(self, store: Store) -> None:
        with store.hold("stage", INPUTS) as entry:
            assert not entry.finished
            assert entry.path == store.path("stage", INPUTS)
            assert store.peek("stage", INPUTS).folder == entry.folder
            (entry.folder / "a").write_text("a")
            entry.publish()
            assert entry.finished and (entry.folder / "a").read_text() == "a"
            assert store.peek("stage", INPUTS).finished
        with store.hold("stage", INPUTS) as entry:
            assert entry.finished and entry.folder == entry.path

    def test_left_unfinished(self, store: Store) -> None:
        with store.hold("stage", INPUTS) as entry:
            (entry.folder / "a").write_text("a")
        assert store.find("stage", INPUTS) is None
        with store.hold("stage", INPUTS) as entry:
            assert not entry.finished and (entry.folder / "a").exists()

    @pytest.mark.parametrize("inside", ["store", "store/deep"])
    def test_a_file_in_the_way(self, tmp_path: Path, inside: str) -> None:
        (tmp_path / "store").write_text("no folder")
        with pytest.raises(ConfigError, match=f"^store={tmp_path / inside}: .*give the path of a folder"):
            Store(tmp_path / inside).get("stage", INPUTS, Maker())

    def test_two_processes_make_once(self, store: Store, tmp_path: Path) -> None:
        script = """
import sys, time
from pathlib import Path
from dbexp.core.store import Store

def make(folder):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    time.sleep(0.4)
    (folder / "a").write_text("a")

while not Path(sys.argv[3]).exists():
    time.sleep(0.01)
print(Store(Path(sys.argv[1])).get("stage", {"version": 1}, make))
"""
        log, start = tmp_path / "log", tmp_path / "start"
        command = [sys.executable, "-c", script, str(store.root), str(log), str(start)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        start.touch()
        printed = {process.communicate(timeout=60)[0].strip() for process in started}
        assert [process.returncode for process in started] == [0, 0, 0]
        assert printed == {str(store.path("stage", {"version": 1}))}
        assert log.read_text() == "made\n"


class TestSharing:
    def test_a_run_that_is_written_into_leaves_the_store_alone(self, store: Store, tmp_path: Path) -> None:
        folder = store.get("stage", INPUTS, Maker())
        link_tree(folder, tmp_path / "run", skip=MANIFEST)
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        assert sorted(path.relative_to(tmp_path / "run").as_posix() for path in files) == [
            "deep/second.bin",
            "first.txt",
        ]
        for path in files:
            with suppress(PermissionError), path.open("r+b") as file:  # root gets copies, others no right
                file.write(b"x")
        _checked.clear()
        assert store.find("stage", INPUTS) == folder

    @pytest.mark.skipif(os.name != "posix", reason="rights that only POSIX has")
    def test_published_files_are_sealed_and_a_large_one_is_linked(self, store: Store, tmp_path: Path) -> None:
        def make(folder: Path) -> None:
            (folder / "large").write_bytes(bytes(TREE_COPY_BYTES + 1))

        folder = store.get("stage", INPUTS, make)
        assert not (folder / "large").stat().st_mode & 0o222
        link_tree(folder, tmp_path / "run", skip=MANIFEST)
        assert (tmp_path / "run" / "large").samefile(folder / "large")
        (folder / "large").chmod(0o644)  # as an older version left it
        _checked.clear()
        assert store.find("stage", INPUTS) == folder
        assert not (folder / "large").stat().st_mode & 0o222, "sealed at its first use"
        remove(folder)
        assert not folder.exists()


class TestReadOnly:
    """A store on a disk that may only be read; root may write anywhere, so the system's answers are played back."""

    @pytest.fixture
    def read_only(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        store.get("stage", INPUTS, Maker())
        _checked.clear()

        def switch(number: int) -> None:
            def refuse(path: Any, *_: Any, **__: Any) -> None:
                raise OSError(number, os.strerror(number), str(path))

            for module, names in ((os, "utime replace chmod mkdir"), (Path, "chmod unlink touch")):
                for name in names.split():
                    monkeypatch.setattr(module, name, refuse)
            monkeypatch.setattr("filelock.FileLock.acquire", lambda lock, *_, **__: refuse(lock.lock_file))

        return switch

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
    def test_what_is_complete_is_found(self, store: Store, read_only: Callable[[int], None], number: int) -> None:
        read_only(number)
        path = store.path("stage", INPUTS)
        assert store.find("stage", INPUTS) == path
        assert store.get("stage", INPUTS, Maker()) == path
        with store.hold("stage", INPUTS) as entry:
            assert entry.finished
        assert store.file_hash(path / "first.txt") == hashlib.sha256(b"one").hexdigest()

    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
    def test_what_is_missing_is_one_message(self, store: Store, read_only: Callable[[int], None], number: int) -> None:
        read_only(number)
        says = rf"^store={store.root}: may not be written \({os.strerror(number)}\), and lacks an entry of stage train"
        with pytest.raises(ConfigError, match=says):
            store.get("train", INPUTS, Maker())


class TestFullDisk:
    def test_the_path_is_never_missing(self, store: Store) -> None:
        with pytest.raises(OSError, match="No space") as caught:
            store.get("stage", INPUTS, Maker(OSError(errno.ENOSPC, "No space left on device")))
        assert caught.value.filename == str(store.partial("stage", INPUTS))

    def test_a_library_that_says_it_in_its_own_words(self, store: Store) -> None:
        error = RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
        with pytest.raises(OSError, match="No space") as caught:
            store.get("stage", INPUTS, Maker(error))
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(store.partial("stage", INPUTS))

    def test_other_errors_stay_as_they_are(self, store: Store) -> None:
        for error in (RuntimeError("shapes differ"), ConfigError("No space left on device; free some")):
            with pytest.raises(type(error)) as caught:
                store.get("stage", INPUTS, Maker(error))
            assert caught.value is error

    def test_a_hash_is_not_worth_failing_for(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "store").write_text("in the way")
        assert store.file_hash(tmp_path / "store") == hashlib.sha256(b"in the way").hexdigest()


class TestPlace:
    def test_default_place_is_the_users_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("HOME", str(tmp_path))
        if sys.platform == "linux":
            assert Store().root == tmp_path / "cache" / "dbexp"
        assert Store(Path("~/mine")).root == tmp_path / "mine"
