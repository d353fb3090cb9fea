"""Finding a subject's pictures, and refusing or doubting bad ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbexp import dataset
from dbexp.config.schema import DatasetConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from tests.core import icc

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "dreambooth"


def picture(seed: int, width: int = 64, height: int = 64) -> Image.Image:
    """Noise: two seeds never give the same picture."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def fill(folder: Path, count: int = 4, **size: int) -> Path:
    """A folder with `count` different pictures 00.png, 01.png, ..."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture(i, **size).save(folder / f"{i:02d}.png")
    return folder


def cfg_of(path: Path | str | None, /, **changes: Any) -> DatasetConfig:
    """The config of `dataset=folder dataset.path=...`."""
    fields = {"name": "folder", "class_noun": "dog", "live": True, "path": None if path is None else str(path)}
    return DatasetConfig(**{**fields, **changes})


def dreambooth(**changes: Any) -> DatasetConfig:
    """The config of `dataset=dog`."""
    return cfg_of(None, **{"name": "dog", "source": "dreambooth", **changes})


def the_problem(cfg: DatasetConfig) -> str:
    """The one message that `problems` has about it."""
    (message,) = dataset.problems(cfg)
    return message


def no_download(*_: Any, **__: Any) -> str:
    raise AssertionError("the hub must not be asked")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


class TestFolder:
    def test_a_subject(self, tmp_path: Path, store: Store) -> None:
        folder = fill(tmp_path / "rex")
        assert dataset.problems(cfg_of(folder)) == []
        subject = dataset.load(cfg_of(folder, token="sks"), store)
        assert subject.name == "rex"
        assert (subject.token, subject.class_noun, subject.live) == ("sks", "dog", True)
        assert subject.prompt == "a photo of sks dog"
        assert [path.name for path in subject.paths] == ["00.png", "01.png", "02.png", "03.png"]
        assert all(path.is_absolute() for path in subject.paths)
        assert subject.hashes == tuple(hashlib.sha256(path.read_bytes()).hexdigest() for path in subject.paths)
        assert dataset.load(cfg_of(folder), store) == subject

    def test_names(self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = fill(tmp_path / "rex" / "indoors").parent
        fill(folder)
        assert dataset.load(cfg_of(folder, name="king"), store).name == "king"
        monkeypatch.chdir(folder / "indoors")
        assert dataset.load(cfg_of("."), store).name == "indoors"
        assert dataset.load(cfg_of(".."), store).name == "rex"
        monkeypatch.setenv("HOME", str(tmp_path))
        assert dataset.load(cfg_of("~/rex"), store).name == "rex"
        (tmp_path / "link").symlink_to(folder)
        assert dataset.load(cfg_of(tmp_path / "link"), store).name == "link"

    def test_home_of_nobody(self) -> None:
        assert the_problem(cfg_of("~no_such_user/rex")).startswith("dataset.path=~no_such_user/rex: there is no folder")

    def test_other_files_are_ignored(self, tmp_path: Path, store: Store) -> None:
        folder = fill(tmp_path / "rex", 2)
        (folder / "notes.txt").write_text("his ears are orange")
        (folder / ".DS_Store").write_bytes(b"\0")
        picture(9).save(folder / "._00.jpg")
        fill(folder / ".ipynb_checkpoints")
        assert dataset.problems(cfg_of(folder)) == []
        assert len(dataset.load(cfg_of(folder), store).paths) == 2

    def test_unset_path(self) -> None:
        assert "dataset.path=FOLDER" in the_problem(cfg_of(None))

    def test_no_picture(self, tmp_path: Path, store: Store) -> None:
        folder = tmp_path / "rex"
        folder.mkdir()
        assert the_problem(cfg_of(folder)) == f"dataset.path={folder}: no picture in {folder}, it is empty"
        (folder / ".ipynb_checkpoints").mkdir()
        for name in ("a.txt", "b.txt", "README"):
            (folder / name).write_text("")
        message = f"dataset.path={folder}: no picture in {folder}, only 2 .txt files, 1 README file and 1 folder"
        assert the_problem(cfg_of(folder)) == message
        with pytest.raises(ConfigError, match="no picture in"):
            dataset.load(cfg_of(folder), store)

    def test_pictures_one_level_down(self, tmp_path: Path) -> None:
        fill(tmp_path / "all" / "rex")
        fill(tmp_path / "all" / "king")
        (tmp_path / "all" / "empty").mkdir()
        assert the_problem(cfg_of(tmp_path / "all")).endswith("there are pictures one level down, in king and rex")

    def test_missing_folder(self, tmp_path: Path) -> None:
        fill(tmp_path / "photos" / "rex")
        fill(tmp_path / "photos" / "king")
        wrong = tmp_path / "photos" / "rx"
        assert the_problem(cfg_of(wrong)) == (
            f"dataset.path={wrong}: there is no folder {wrong}; {wrong.parent} holds king and rex; did you mean rex?"
        )
        far = tmp_path / "nowhere" / "rex"
        assert the_problem(cfg_of(far)) == f"dataset.path={far}: there is no folder {far}, nor the one above it"
        lonely = tmp_path / "photos" / "rex" / "indoors"
        assert (
            the_problem(cfg_of(lonely))
            == f"dataset.path={lonely}: there is no folder {lonely}, nor any other beside it"
        )

    def test_long_listings_are_cut(self, tmp_path: Path) -> None:
        for i in range(20):
            (tmp_path / f"subject_{i:02d}").mkdir()
        assert "subject_11 and 8 more" in the_problem(cfg_of(tmp_path / "zzz"))

    def test_a_file(self, tmp_path: Path) -> None:
        path = fill(tmp_path / "rex") / "00.png"
        assert (
            the_problem(cfg_of(path)) == f"dataset.path={path}: is a file; give the folder that holds it, {path.parent}"
        )

    def test_name_too_long_for_the_disk(self) -> None:
        assert "cannot be reached" in the_problem(cfg_of("x" * 5000))

    def test_every_bad_picture_is_named(self, tmp_path: Path, store: Store) -> None:
        folder = fill(tmp_path / "rex")
        picture(5).save(folder / "04.jpg")
        (folder / "04.jpg").write_bytes((folder / "04.jpg").read_bytes()[:900])
        (folder / "05.png").write_bytes(b"")
        (folder / "06.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(32))
        (folder / "07.jpg").symlink_to(folder / "gone.jpg")
        messages = dataset.problems(cfg_of(folder))
        expected = (
            "04.jpg: is truncated",
            "05.png: the file is empty",
            "06.heic: is a HEIC",
            "07.jpg: is a broken link",
        )
        assert len(messages) == len(expected)
        for message, start in zip(messages, expected, strict=True):
            assert message.startswith(f"{folder}/{start}")
        with pytest.raises(ConfigError) as caught:
            dataset.load(cfg_of(folder), store)
        assert list(caught.value.problems) == messages

    @pytest.mark.skipif(os.name != "posix", reason="kinds of files that only POSIX has")
    def test_files_that_are_no_files_are_named_and_never_waited_for(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        os.mkfifo(folder / "04.png")
        (folder / "05.png").symlink_to("/dev/zero")
        assert dataset.problems(cfg_of(folder)) == [
            f"{folder}/04.png: is a pipe, not a file; remove it",
            f"{folder}/05.png: is a device, not a file; remove it",
        ]

    def test_a_mended_picture_is_read_again(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        whole = (folder / "00.png").read_bytes()
        (folder / "00.png").write_bytes(whole[:-2000])
        assert len(dataset.problems(cfg_of(folder))) == 1
        (folder / "00.png").write_bytes(whole)
        assert dataset.problems(cfg_of(folder)) == []
        (folder / "00.png").write_bytes(whole[:-1000])
        assert len(dataset.problems(cfg_of(folder))) == 1

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
    def test_no_permission(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "above" / "rex")
        (folder / "02.png").chmod(0)
        assert "02.png: may not be read" in the_problem(cfg_of(folder))
        for closed in (folder, folder.parent):
            closed.chmod(0)
            try:
                assert "ermission denied" in the_problem(cfg_of(folder))
            finally:
                closed.chmod(0o755)

    def test_no_permission_to_list(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = fill(tmp_path / "rex")

        def refuse(_: Path) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "iterdir", refuse)
        assert the_problem(cfg_of(folder)) == f"{folder}: cannot be listed (Permission denied)"


class TestWarnings:
    def says(self, folder: Path, tmp_path: Path, resolution: int = 64) -> list[str]:
        return dataset.warnings(dataset.load(cfg_of(folder), Store(tmp_path / "store")), resolution)

    def test_none(self, tmp_path: Path) -> None:
        assert self.says(fill(tmp_path / "rex", width=96), tmp_path) == []

    def test_small(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        picture(9, 80, 63).save(folder / "04.png")
        assert self.says(folder, tmp_path) == [
            "smaller than the resolution of 64 px and therefore enlarged: 04.png (80 x 63)"
        ]

    def test_rotated_by_exif_it_is_the_upright_size_that_counts(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(9, 80, 60).save(folder / "04.png", exif=exif)
        assert self.says(folder, tmp_path) == [
            "smaller than the resolution of 64 px and therefore enlarged: 04.png (60 x 80)"
        ]

    def test_oblong(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        picture(8, 96, 64).save(folder / "04.png")
        picture(9, 64, 114).save(folder / "05.png")
        assert self.says(folder, tmp_path) == [
            "far from square, so a crop loses much of the picture: 05.png (64 x 114)"
        ]

    def test_twins_by_pixels(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        picture(0).save(folder / "copy.bmp")
        picture(0).save(folder / "again.png", compress_level=1)
        assert self.says(folder, tmp_path) == ["the same picture 3 times: 00.png, again.png and copy.bmp"]

    def test_equal_bytes_in_another_shape_are_no_twins(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        Image.new("RGB", (64, 80)).save(folder / "tall.png")
        Image.new("RGB", (80, 64)).save(folder / "wide.png")
        assert self.says(folder, tmp_path) == []

    def test_many(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex", 101, width=8, height=8)
        many = "subject rex has 101 pictures, and all of them are encoded and trained on: 4 to 6 are usual"
        assert self.says(folder, tmp_path, 8) == [many]
        (folder / "00.png").unlink()
        assert self.says(folder, tmp_path, 8) == []

    def test_colours(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        picture(7).save(folder / "p3.jpg", icc_profile=icc.rgb(name="Display P3"))
        picture(8).save(folder / "p3.tif", icc_profile=icc.rgb(name="Display P3"))
        picture(9).save(folder / "torn.png", icc_profile=b"torn")
        assert self.says(folder, tmp_path) == [
            "colours converted to sRGB from Display P3: p3.jpg and p3.tif",
            "colours taken for sRGB, since its colour profile is damaged: torn.png",
        ]

    def test_what_is_not_read_is_named(self, tmp_path: Path) -> None:
        folder = fill(tmp_path / "rex")
        for name in ("00.txt", "01.png.txt", "a.CR2", "b.jxl", "c.jp2", "d.psd", "IMG_0003", "other.txt", "Thumbs.db"):
            (folder / name).write_bytes(b"?")
        fill(folder / "10_sks dog")
        (folder / "empty").mkdir()
        assert self.says(folder, tmp_path) == [
            "captions are not read, since every picture has the one of dataset.prompt: 00.txt and 01.png.txt",
            "pictures one level down are not read: 10_sks dog/",
            "not read, since only .avif, .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .png, .tif, .tiff and .webp are "
            "pictures: IMG_0003, a.CR2, b.jxl, c.jp2, d.psd and other.txt",
        ]

    def test_nothing_lies_beside_drawn_pictures(self, tmp_path: Path) -> None:
        cfg = cfg_of(None, name="storybook/dog", source="storybook")
        assert dataset.warnings(dataset.load(cfg, Store(tmp_path)), 8) == []

    def test_few(self, tmp_path: Path) -> None:
        assert self.says(fill(tmp_path / "one", 1), tmp_path) == ["subject one has only 1 picture: 4 to 6 are usual"]
        assert self.says(fill(tmp_path / "two", 2), tmp_path) == ["subject two has only 2 pictures: 4 to 6 are usual"]


class TestDreambooth:
    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.snapshot_download", no_download)

    @pytest.mark.parametrize("nested", [".", "dataset"])
    def test_root(self, tmp_path: Path, store: Store, nested: str) -> None:
        folder = fill(tmp_path / "copy" / nested / "dog")
        subject = dataset.load(dreambooth(root=str(tmp_path / "copy")), store)
        assert subject.name == "dog"
        assert subject.paths[0] == folder / "00.png"

    def test_path_wins(self, tmp_path: Path, store: Store) -> None:
        fill(tmp_path / "copy" / "dog")
        folder = fill(tmp_path / "elsewhere", 2)
        subject = dataset.load(dreambooth(root=str(tmp_path / "copy"), path=str(folder)), store)
        assert subject.name == "dog"
        assert {path.parent for path in subject.paths} == {folder}

    def test_root_without_the_subject(self, tmp_path: Path) -> None:
        fill(tmp_path / "copy" / "dog2")
        root = tmp_path / "copy"
        assert the_problem(dreambooth(root=str(root))) == (
            f"dataset.root={root}, dataset.name=dog: there is no folder {root / 'dog'}; "
            f"{root} holds dog2; did you mean dog2?"
        )

    @pytest.mark.parametrize("nested", [".", "dataset"])
    def test_hub(self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, nested: str) -> None:
        fill(tmp_path / "snapshot" / nested / "dog", 5)
        calls = []

        def download(repository: str, **options: Any) -> str:
            calls.append((repository, options))
            return str(tmp_path / "snapshot")

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        subject = dataset.load(dreambooth(), store)
        assert len(subject.paths) == 5
        repository, options = calls[0]
        assert repository == "google/dreambooth"
        assert options["repo_type"] == "dataset"
        assert options["token"] is False
        assert options["allow_patterns"] == ["dog/*", "dataset/dog/*"]

    def test_hub_without_the_subject(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
        assert the_problem(dreambooth()).startswith(
            "dataset.hub=google/dreambooth, dataset.name=dog: there is no folder"
        )

    def test_no_network(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub.errors import LocalEntryNotFoundError

        def fail(*_: Any, **__: Any) -> str:
            raise LocalEntryNotFoundError("Got: ConnectError: no route to host\nand a long explanation")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        message = the_problem(dreambooth())
        assert message == (
            "dataset.hub=google/dreambooth: subject dog could not be downloaded "
            "(LocalEntryNotFoundError: Got: ConnectError: no route to host); pass dataset.path=FOLDER for a folder of "
            "its pictures, or dataset.root=FOLDER for a copy of the whole dataset"
        )
        with pytest.raises(ConfigError, match=r"dataset\.root=FOLDER"):
            dataset.load(dreambooth(), store)

    @pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
    def test_a_variable_that_forbids_the_hub_is_named(self, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
        def fail(*_: Any, **__: Any) -> str:
            raise ValueError("pass 'local_files_only=False' as input")

        monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv(variable, "yes")
        message = the_problem(dreambooth())
        assert f"({variable}=yes forbids to ask the hub, and it is not on this machine); pass dataset.path=" in message
        assert "local_files_only" not in message


class TestStorybook:
    def config(self, key: str = "dog", **changes: Any) -> DatasetConfig:
        return cfg_of(None, **{"name": f"storybook/{key}", "source": "storybook", **changes})

    @pytest.mark.parametrize("key", ["dog", "dog2", "cat", "backpack", "teapot"])
    def test_subjects(self, store: Store, key: str) -> None:
        subject = dataset.load(self.config(key), store)
        assert subject.name == f"storybook/{key}"
        assert 5 <= len(subject.paths) <= 6
        assert len(set(subject.hashes)) == len(subject.paths)
        assert all(store.root in path.parents for path in subject.paths)

    def test_drawn_once_and_the_same_anywhere(
        self, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = dataset.load(self.config(), store)
        assert dataset.load(self.config(), Store(tmp_path / "another")).hashes == first.hashes

        def never(*_: Any) -> None:
            raise AssertionError("drawn twice")

        monkeypatch.setattr("dbexp.storybook.world.subjects.draw_subject", never)
        assert dataset.load(self.config(), store) == first

    @pytest.mark.parametrize("name", ["storybook/dgo", "dog", "storybook"])
    def test_unknown(self, name: str) -> None:
        message = the_problem(self.config(name=name))
        assert message.startswith(f"dataset.name={name}: choose one of storybook/dog, storybook/dog2, storybook/cat")

    def test_spelling(self) -> None:
        assert the_problem(self.config("taepot")).endswith("did you mean storybook/teapot?")

    @pytest.mark.parametrize("field", ["path", "root"])
    def test_a_folder_has_no_effect(self, tmp_path: Path, field: str) -> None:
        message = the_problem(self.config(**{field: str(tmp_path)}))
        assert message.startswith(f"dataset.{field}={tmp_path}: has no effect")
        assert "dataset=folder" in message


@pytest.mark.skipif(not REAL.is_dir(), reason="the photographs of the DreamBooth dataset are not here")
class TestPhotographs:
    @pytest.mark.parametrize("name", ["backpack", "cat", "dog", "dog3", "teapot", "vase"])
    def test_real_subjects(self, store: Store, name: str) -> None:
        cfg = dreambooth(name=name, root=str(REAL))
        subject = dataset.load(cfg, store)
        assert 4 <= len(subject.paths) <= 6
        assert dataset.warnings(subject, resolution=512) == []
        assert dataset.load(cfg, store).hashes == subject.hashes
