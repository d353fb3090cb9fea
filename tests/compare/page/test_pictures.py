"""Pictures within a budget of bytes: all of them if they can be made small enough, else the most important ones."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from dbexp.compare.page.pictures import SIDES, embed
from dbexp.core.files import link


def noise(folder: Path, count: int, side: int) -> list[Path]:
    """Pictures that compress badly."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:02d}.png" for number in range(count)]
    for path in paths:
        Image.fromarray(generator.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path, compress_level=1)
    return paths


def opened(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_pictures_shrink_until_all_fit(tmp_path: Path) -> None:
    paths = noise(tmp_path, 8, 256)
    whole = sum(map(len, embed(paths, 10**9).uris))
    images = embed(paths, whole // 3)
    assert images.left_out == 0 and len(images.uris) == 8
    assert sum(map(len, images.uris)) <= whole // 3
    assert images.side < SIDES[0] and max(opened(images.uris[0]).size) == images.side


def test_what_still_does_not_fit_is_left_out_last_first(tmp_path: Path) -> None:
    paths = noise(tmp_path, 6, SIDES[-1])
    budget = 3 * len(embed(paths[:1]).uris[0])
    images = embed(paths, budget)
    assert 0 < len(images.uris) < 6 and images.left_out == 6 - len(images.uris)
    assert list(images.indices) == paths[: len(images.uris)]
    assert sum(map(len, images.uris)) <= budget


def test_small_pictures_keep_their_pixels(tmp_path: Path) -> None:
    (path,) = noise(tmp_path, 1, 24)
    assert opened(embed([path]).uris[0]).size == (24, 24)


def test_one_file_counts_once_and_a_damaged_one_not_at_all(tmp_path: Path) -> None:
    first, second = noise(tmp_path, 2, 16)
    os.link(first, tmp_path / "link.png")
    second.write_bytes(second.read_bytes()[:200])
    link(first, tmp_path / "copy.png")
    images = embed([first, tmp_path / "link.png", tmp_path / "copy.png", second, tmp_path / "missing.png"])
    assert len(images.uris) == 1
    assert images.indices == {first: 0, tmp_path / "link.png": 0, tmp_path / "copy.png": 0}


def test_of_one_size_and_time_is_not_yet_a_copy(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.bmp")
    Image.new("RGB", (8, 8), (3, 2, 1)).save(tmp_path / "b.bmp")
    for name in ("a.bmp", "b.bmp"):
        os.utime(tmp_path / name, ns=(1, 1))
    assert len(embed([tmp_path / "a.bmp", tmp_path / "b.bmp"]).uris) == 2
