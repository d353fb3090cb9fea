"""Pictures for the backbones to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six smooth colour patterns, one of them upright, one lying."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(96, 96), (96, 96), (80, 120), (130, 90), (96, 96), (200, 200)]):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        paths.append(folder / f"{i}.png")
        coarse.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def cpu() -> torch.device:
    """The device of every test."""
    return torch.device("cpu")
