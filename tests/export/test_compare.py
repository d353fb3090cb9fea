"""How much images differ."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dbexp.export import compare


def test_psnr() -> None:
    black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    assert compare.psnr(black, black) == math.inf
    assert compare.psnr(black, grey) == pytest.approx(20 * math.log10(5))
