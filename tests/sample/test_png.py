"""Images that say how they were made."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbexp.core.errors import ConfigError
from dbexp.sample import png

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "image.png"
    png.save(PIXELS, path, {"prompt": "sks 犬", "seed": 2**63, "negative_prompt": ""})
    assert png.read_metadata(path) == {"prompt": "sks 犬", "seed": str(2**63), "negative_prompt": ""}
    with Image.open(path) as image:
        assert (np.asarray(image) == PIXELS).all()


def test_a_file_holds_an_image_when_it_is_whole_and_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    assert not png.holds(path, {})
    png.save(PIXELS, path, {"seed": 1})
    assert png.holds(path, {"seed": 1})
    assert not png.holds(path, {"seed": 2}) and not png.holds(path, {"seed": 1, "steps": 3})
    path.write_bytes(path.read_bytes()[:-200])
    assert not png.holds(path, {"seed": 1})


def test_metadata_of_what_is_no_png_is_an_error_with_its_name(tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 8)).save(photo)
    with pytest.raises(ConfigError, match=r"photo.jpg: cannot be read as PNG"):
        png.read_metadata(photo)


class TestWriter:
    def test_files_are_those_of_save(self, tmp_path: Path) -> None:
        with png.Writer() as writer:
            for k in range(20):
                writer.save(PIXELS, tmp_path / f"{k}.png", {"k": k})
        for k in range(20):
            png.save(PIXELS, tmp_path / "alone.png", {"k": k})
            assert (tmp_path / f"{k}.png").read_bytes() == (tmp_path / "alone.png").read_bytes()

    @pytest.mark.parametrize("count", [1, 100])
    def test_an_error_reaches_whoever_draws(self, count: int, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="file"), png.Writer() as writer:
            for _ in range(count):
                writer.save(PIXELS, tmp_path / "file" / "0.png", {})

    def test_an_error_of_drawing_is_told_before_one_of_writing(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ZeroDivisionError), png.Writer() as writer:
            writer.save(PIXELS, tmp_path / "file" / "0.png", {})
            raise ZeroDivisionError

    def test_few_images_wait(self, tmp_path: Path) -> None:
        with png.Writer(most_bytes=6 * PIXELS.nbytes) as writer:
            for k in range(100):
                writer.save(PIXELS, tmp_path / f"{k}.png", {})
                assert writer.waiting <= 7
        assert len(list(tmp_path.iterdir())) == 100

    def test_what_was_drawn_is_written_whatever_ends_the_drawing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save = png.save

        def slowly(*arguments: Any) -> None:
            time.sleep(0.02)
            save(*arguments)

        monkeypatch.setattr(png, "save", slowly)
        with pytest.raises(KeyboardInterrupt), png.Writer() as writer:
            for k in range(12):
                writer.save(PIXELS, tmp_path / f"{k}.png", {"k": k})
            raise KeyboardInterrupt
        assert all(png.holds(tmp_path / f"{k}.png", {"k": k}) for k in range(12))
        assert not list(tmp_path.glob(".*"))

    def test_it_goes_on_while_the_next_images_are_drawn(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        begun, drawn = threading.Event(), threading.Event()

        def save(*_: Any) -> None:
            begun.set()
            assert drawn.wait(10)

        monkeypatch.setattr(png, "save", save)
        with png.Writer() as writer:
            writer.save(PIXELS, tmp_path / "0.png", {})
            assert begun.wait(10)
            drawn.set()  # which is only reached while the file is being written
