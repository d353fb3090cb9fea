"""Transforms against torchvision's, which the reference evaluations use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T

from dbexp.core.errors import ConfigError
from dbexp.evaluate.pictures import inspect, square, to_tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("size", [(512, 512), (301, 512), (777, 333), (224, 225), (100, 37)])
def test_the_transform_is_torchvisions_on_pil_images(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    bicubic = T.InterpolationMode.BICUBIC
    expected = T.Compose([T.Resize(256, bicubic), T.CenterCrop(224), T.ToTensor(), T.Normalize(MEAN, STD)])(image)
    torch.testing.assert_close(to_tensor(square(image, 256, 224), MEAN, STD), expected, rtol=0, atol=1e-6)


def test_inspection_tells_content_size_and_blackness(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "black.png")
    almost = Image.new("RGB", (8, 6))
    almost.putpixel((7, 5), (0, 0, 1))
    almost.save(tmp_path / "almost.png")
    Image.new("RGBA", (8, 6), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    black, almost_black, clear = (inspect(tmp_path / name) for name in ("black.png", "almost.png", "clear.png"))
    assert (black.width, black.height, black.black) == (8, 6, True)
    assert not almost_black.black and black.sha256 != almost_black.sha256
    assert not clear.black, "transparency is composited on white"


def test_a_missing_file_and_a_damaged_one_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        inspect(tmp_path / "none.png")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:1500])
    with pytest.raises(ConfigError, match=r"cut\.png"):
        inspect(tmp_path / "cut.png")
