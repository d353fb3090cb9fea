"""Images that say how they were made."""

from __future__ import annotations

from pathlib import Path

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
