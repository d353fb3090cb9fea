"""What a person is told of a folder of pictures."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from dbexp.core import inspection
from dbexp.core.errors import ConfigError
from dbexp.core.inspection import examine, image_problems, image_warnings


def noise(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A TIFF that says something of itself which is cut short; Pillow warns of it."""
    path = tmp_path / "odd.tif"
    noise().save(path, tiffinfo={TiffImagePlugin.IMAGEDESCRIPTION: "x" * 99})
    data = path.read_bytes()
    tag = data.index((270).to_bytes(2, "little") + (2).to_bytes(2, "little"))
    path.write_bytes(data[: tag + 4] + (10**6).to_bytes(4, "little") + data[tag + 8 :])
    return path


def test_what_the_decoder_finds_odd_is_said_with_the_name_of_the_file(odd: Path) -> None:
    assert len(examine(odd).remarks) == 1
    (sentence,) = image_warnings([odd], 8)
    assert sentence.startswith("read, though something is odd (") and sentence.endswith("): odd.tif")


def test_the_decoder_itself_says_nothing_on_the_terminal(odd: Path) -> None:
    code = f"from dbexp.core.images import read_rgb; from pathlib import Path; print(read_rgb(Path({str(odd)!r})).size)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(8, 8)\n", "")


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png")
    before = examine(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(inspection, "read_converted", lambda _: pytest.fail("it was read before"))
        assert examine(tmp_path / "a.png") is before
    noise(1).save(tmp_path / "a.png", compress_level=0)
    assert examine(tmp_path / "a.png").pixels != before.pixels


def test_a_failure_is_never_remembered(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        examine(tmp_path / "a.png")
    noise().save(tmp_path / "a.png")
    assert examine(tmp_path / "a.png").width == 8


def test_problems_begin_with_the_parameter(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    assert image_problems([tmp_path / "a.png"]) == [f"{tmp_path}/a.png: the file is empty"]
    assert image_problems([tmp_path / "a.png"], "prior.path=x") == [
        f"prior.path=x: {tmp_path}/a.png: the file is empty"
    ]


def test_many_names_are_cut(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:02}.png" for number in range(20)]
    for number, path in enumerate(paths):
        noise(number).save(path)
    (sentence,) = image_warnings(paths, 16)
    assert sentence.endswith("10.png (8 x 8), 11.png (8 x 8) and 8 more")


def test_many_pictures_have_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inspection, "MANY", 2)
    noise().save(tmp_path / "a.png")
    paths = [tmp_path / "a.png"] * 3
    assert image_problems(paths[:2]) == []
    assert capsys.readouterr().err == ""
    assert image_problems(paths) == []
    assert "read pictures: 3/3" in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_thousand_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise().save(tmp_path / "first.png")
    data = (tmp_path / "first.png").read_bytes()
    paths = [tmp_path / f"{number:05}.png" for number in range(20_000)]
    for path in paths:
        path.write_bytes(data)
    started = time.perf_counter()
    assert image_problems(paths) == []
    first = time.perf_counter() - started
    assert "read pictures: 20000/20000" in capsys.readouterr().err
    assert image_problems(paths) == []
    again = time.perf_counter() - started - first
    print(f"20,000 pictures: {first:.1f} s, again {again:.1f} s")
    assert again < first / 3
