"""The sheet of the world in README."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dbexp.storybook.world import show


def test_a_row_per_class_and_every_picture_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["show", str(tmp_path / "world.png")])
    show.main()
    with Image.open(tmp_path / "world.png") as image:
        sheet = np.asarray(image.convert("RGB"))
    assert sheet.shape == (4 * 98 - 2, 12 * 98 - 2, 3)
    pictures = {
        sheet[98 * row : 98 * row + 96, 98 * at : 98 * at + 96].tobytes() for row in range(4) for at in range(12)
    }
    assert len(pictures) == 48


def test_readmes_sheet_is_what_the_command_draws() -> None:
    with Image.open(Path(show.__file__).with_name("world.png")) as kept:
        apart = np.asarray(kept.convert("RGB"), dtype=int) - np.asarray(show.world_sheet(), dtype=int)
    assert np.abs(apart).mean() < 1, "drawn anew, but for what another Pillow rounds otherwise"
