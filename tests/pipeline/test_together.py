"""Whether the images of a pack are drawn together, and that each run finds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dbexp.pipeline import together
from tests.sweeps import Outcome, dbexp_command, results, tiny


def sweep(folder: Path, lanes: str, *words: str) -> Outcome:
    folder.mkdir(exist_ok=True)
    outcome = dbexp_command(
        folder, "-m", *tiny(folder / "store"), "train.steps=2", "lora.rank=2,4", "hydra.sweep.dir=sweep",
        f"sample.lanes={lanes}", *words,
    )  # fmt: skip
    assert outcome.status == 0, outcome.err
    assert [row["status"] for row in results(folder / "sweep")] == ["finished", "finished"]
    return outcome


def images(folder: Path) -> dict[str, NDArray[np.int64]]:
    """Samples and class samples of both runs."""
    paths = sorted((folder / "sweep").glob("[01]/*sample*/**/*.png"))
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)).astype(np.int64) for path in paths}


def test_images_of_a_pack_drawn_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(together, "draw_together", lambda *_, **__: pytest.fail("on a CPU LoRAs are merged"))
        assert "were not drawn together" not in sweep(tmp_path / "alone", "auto").err
    said = sweep(tmp_path / "together", "beside").err
    assert "4 sets of images are drawn together" in said
    assert "sample, adapter on" not in said and "class samples, adapter on" not in said, "nothing was left for the runs"
    one, other = images(tmp_path / "alone"), images(tmp_path / "together")
    assert one.keys() == other.keys() and len(one) > 8
    assert all(np.abs(one[name] - other[name]).max() <= 1 for name in one)


def test_what_fails_together_is_drawn_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a kernel is missing")

    monkeypatch.setattr(together, "draw_together", fail)
    said = sweep(tmp_path, "beside").err
    assert "were not drawn together (RuntimeError: a kernel is missing); each run draws its own" in said
