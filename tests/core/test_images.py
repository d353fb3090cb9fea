"""Pictures as people have them, and what training makes of them."""

from __future__ import annotations

import os
import socket
import struct
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dbexp.core import images
from dbexp.core.errors import ConfigError
from dbexp.core.images import image_files, is_image, prepare, read_rgb, short_side_resize, short_side_size

pytestmark = pytest.mark.filterwarnings("error")


def gradient(width: int = 48, height: int = 32) -> Image.Image:
    """A smooth RGB picture without any symmetry: red grows to the right, green downwards."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = columns * 255 // max(width - 1, 1), rows * 255 // max(height - 1, 1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 60)], axis=-1).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=int)


class TestReadRgb:
    def test_rgb_is_unchanged(self, tmp_path: Path) -> None:
        image = read_rgb(save(gradient(), tmp_path / "a.png"))
        assert image.mode == "RGB"
        assert np.array_equal(pixels(image), pixels(gradient()))

    @pytest.mark.parametrize(
        ("orientation", "stored"),
        [
            (2, Image.Transpose.FLIP_LEFT_RIGHT),
            (3, Image.Transpose.ROTATE_180),
            (6, Image.Transpose.ROTATE_90),
            (8, Image.Transpose.ROTATE_270),
        ],
    )
    def test_exif_rotation_is_undone(self, tmp_path: Path, orientation: int, stored: Image.Transpose) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(gradient().transpose(stored), tmp_path / "a.png", exif=exif)
        image = read_rgb(path)
        assert np.array_equal(pixels(image), pixels(gradient()))
        assert 0x0112 not in image.getexif(), "a second reader would turn it again"

    def test_cmyk_jpeg(self, tmp_path: Path) -> None:
        image = read_rgb(save(gradient().convert("CMYK"), tmp_path / "a.jpg", quality=95))
        assert image.mode == "RGB"
        assert np.abs(pixels(image) - pixels(gradient())).mean() < 4

    def test_transparency_becomes_white(self, tmp_path: Path) -> None:
        image = Image.new("RGBA", (3, 1))
        for x, alpha in enumerate((0, 128, 255)):
            image.putpixel((x, 0), (200, 0, 0, alpha))
        colours = pixels(read_rgb(save(image, tmp_path / "a.png")))[0]
        assert colours[0].tolist() == [255, 255, 255]
        assert colours[1] == pytest.approx([227, 127, 127], abs=1)
        assert colours[2].tolist() == [200, 0, 0]

    def test_grey_with_alpha(self, tmp_path: Path) -> None:
        image = Image.new("LA", (2, 1), (40, 255))
        image.putpixel((0, 0), (40, 0))
        assert pixels(read_rgb(save(image, tmp_path / "a.png")))[0].tolist() == [[255] * 3, [40] * 3]

    def test_palette_with_and_without_a_transparent_entry(self, tmp_path: Path) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.putdata([0, 1])
        opaque = read_rgb(save(image, tmp_path / "opaque.png"))
        clear = read_rgb(save(image, tmp_path / "clear.png", transparency=0))
        assert pixels(opaque)[0].tolist() == [[10, 20, 30], [200, 100, 50]]
        assert pixels(clear)[0].tolist() == [[255, 255, 255], [200, 100, 50]]

    def test_sixteen_bits_are_scaled_not_clipped(self, tmp_path: Path) -> None:
        deep = np.array([[0, 257, 32768, 65535, 200]], dtype=np.uint16)
        image = read_rgb(save(Image.fromarray(deep), tmp_path / "a.png"))
        assert pixels(image)[0, :, 0].tolist() == [0, 1, 128, 255, 1]
        assert image.mode == "RGB"

    def test_sixteen_bits_and_rotated(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        deep = np.array([[0, 65535]], dtype=np.uint16)
        image = read_rgb(save(Image.fromarray(deep), tmp_path / "a.png", exif=exif))
        assert pixels(image)[:, 0, 0].tolist() == [0, 255]

    @pytest.mark.parametrize("mode", ["1", "L"])
    def test_grey_and_black_and_white(self, tmp_path: Path, mode: str) -> None:
        image = read_rgb(save(Image.new(mode, (2, 2), 255), tmp_path / "a.png"))
        assert pixels(image).min() == 255
        assert image.mode == "RGB"

    def test_first_frame_of_an_animation(self, tmp_path: Path) -> None:
        first, second = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
        path = save(first, tmp_path / "a.gif", save_all=True, append_images=[second])
        assert read_rgb(path).getpixel((0, 0)) == (255, 0, 0)

    @pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "gif"])
    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_truncated(self, tmp_path: Path, suffix: str, share: float) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        path = save(Image.fromarray(noise), tmp_path / f"a.{suffix}")
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ConfigError, match=rf"a\.{suffix}: .*(truncated|damaged|cannot be decoded)"):
            read_rgb(path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "the file is empty"),
            (b"Not a picture at all.", "not an image of a known format"),
            (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64), "HEIC.*convert it to JPEG or PNG"),
        ],
    )
    def test_no_picture(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=rf"a\.jpg: .*{message}"):
            read_rgb(path)

    def test_pixels_without_a_known_range(self, tmp_path: Path) -> None:
        path = save(Image.new("F", (2, 2), 0.5), tmp_path / "a.tif")
        with pytest.raises(ConfigError, match=r"a\.tif: .*without a known range"):
            read_rgb(path)

    @pytest.mark.parametrize(("width", "height"), [(110_001, 1000), (13_312, 13_312), (60_000, 60_000)])
    @pytest.mark.parametrize("suffix", ["png", "gif"])
    def test_bombs_are_refused_by_their_header(self, tmp_path: Path, width: int, height: int, suffix: str) -> None:
        path = save(Image.new("P", (8, 8)), tmp_path / f"a.{suffix}")
        data = bytearray(path.read_bytes())
        if suffix == "png":
            data[16:24] = struct.pack(">II", width, height)
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        else:
            width, height = min(width, 65_535), max(height, 2000)
            data[6:10] = struct.pack("<HH", width, height)
        path.write_bytes(data)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # as `images` does outside tests
        started = time.perf_counter()
        with pytest.raises(
            ConfigError, match=r"a\.\w+: is too large .*; at most 110 million are read\); scale it down"
        ):
            read_rgb(path)
        assert time.perf_counter() - started < 1

    def test_the_limit_says_the_size(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(gradient(), tmp_path / "a.png")
        monkeypatch.setattr(images, "MOST_PIXELS", 48 * 32)
        assert read_rgb(path).size == (48, 32)
        monkeypatch.setattr(images, "MOST_PIXELS", 48 * 32 - 1)
        with pytest.raises(ConfigError, match=r"a\.png: is too large \(48 x 32 pixels; "):
            read_rgb(path)

    @pytest.mark.skipif(os.name != "posix", reason="kinds of files that only POSIX has")
    def test_what_is_no_file_is_never_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        (tmp_path / "zero.png").symlink_to("/dev/zero")
        (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(os.path.relpath(tmp_path / "socket.png"))  # the name of a socket is short
            kinds = {"pipe": "a pipe", "zero": "a device", "link": "a pipe", "socket": "a socket"}
            for name, kind in kinds.items():
                with pytest.raises(ConfigError, match=rf"{name}\.png: is {kind}, not a file; remove it"):
                    read_rgb(tmp_path / f"{name}.png")

    def test_no_format_that_starts_another_program(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        gradient().save(path, format="EPS")
        with pytest.raises(ConfigError, match=r"a\.png: is not an image of a known format"):
            read_rgb(path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
        with pytest.raises(ConfigError, match=r"link\.jpg: is a broken link"):
            read_rgb(tmp_path / "link.jpg")
        with pytest.raises(ConfigError, match=r"gone\.jpg: there is no such file"):
            read_rgb(tmp_path / "gone.jpg")
        with pytest.raises(ConfigError, match="is a folder, not an image"):
            read_rgb(tmp_path)

    def test_no_permission(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(gradient(), tmp_path / "a.png")

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)  # root, which often runs tests, may read everything
        with pytest.raises(ConfigError, match=r"a\.png: may not be read"):
            read_rgb(path)

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files the way Linux shows them")
    def test_files_are_closed(self, tmp_path: Path) -> None:
        good = save(gradient(), tmp_path / "good.jpg")
        cut = tmp_path / "cut.jpg"
        cut.write_bytes(good.read_bytes()[:-200])
        before = len(list(Path("/proc/self/fd").iterdir()))
        images_read = [read_rgb(good) for _ in range(5)]
        for _ in range(5):
            with pytest.raises(ConfigError):
                read_rgb(cut)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert len(images_read) == 5


class TestImageFiles:
    def test_images_by_name_and_nothing_else(self, tmp_path: Path) -> None:
        for name in ("b.JPG", "a.png", "c.webp"):
            save(gradient(), tmp_path / name)
        for name in ("notes.txt", ".hidden.png", "._a.png", "Thumbs.db"):
            (tmp_path / name).write_bytes(b"?")
        (tmp_path / ".ipynb_checkpoints").mkdir()
        (tmp_path / "folder.png").mkdir()
        assert [path.name for path in image_files(tmp_path)] == ["a.png", "b.JPG", "c.webp"]

    def test_missing_folder_and_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="gone: cannot be listed"):
            image_files(tmp_path / "gone")
        with pytest.raises(ConfigError, match=r"a\.png: cannot be listed"):
            image_files(save(gradient(), tmp_path / "a.png"))

    def test_what_must_not_vanish_in_silence_counts(self, tmp_path: Path) -> None:
        (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
        assert is_image(tmp_path / "link.jpg")
        assert is_image(tmp_path / "IMG_0001.HEIC")
        assert not is_image(tmp_path / "IMG_0001.mov")


class TestPrepare:
    @pytest.mark.parametrize(
        "size", [(48, 32), (32, 48), (33, 47), (35, 32), (32, 37), (100, 37), (20, 16), (16, 16), (799, 601)]
    )
    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
    def test_equals_torchvision(self, size: tuple[int, int], interpolation: str) -> None:
        transforms = pytest.importorskip("torchvision.transforms")
        image = gradient(*size)
        reference = transforms.Compose(
            [
                transforms.Resize(32, getattr(transforms.InterpolationMode, interpolation.upper())),
                transforms.CenterCrop(32),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )(image)
        assert np.allclose(prepare(image, 32, interpolation), reference.numpy(), atol=1e-6)

    def test_range_shape_and_type(self) -> None:
        black_and_white = Image.new("RGB", (16, 8))
        black_and_white.paste((255, 255, 255), (8, 0, 16, 8))
        pixels = prepare(black_and_white, 8, "bilinear", left=4, top=0)
        assert pixels.dtype == np.float32
        assert pixels.shape == (3, 8, 8)
        assert pixels.flags.c_contiguous
        assert (pixels[:, :, :4] == -1).all()
        assert (pixels[:, :, 4:] == 1).all()

    def test_window_and_mirror(self) -> None:
        image = gradient(24, 16)
        whole = pixels(image).transpose(2, 0, 1) / 127.5 - 1
        window = prepare(image, 16, "lanczos", left=5, top=0)
        mirrored = prepare(image, 16, "lanczos", left=5, top=0, flip=True)
        assert np.allclose(window, whole[:, :, 5:21], atol=1e-6)
        assert np.array_equal(mirrored, window[:, :, ::-1])

    def test_one_side_given_the_other_centered(self) -> None:
        image = gradient(24, 16)
        assert np.array_equal(prepare(image, 16, "bilinear", top=0), prepare(image, 16, "bilinear", left=4, top=0))

    @pytest.mark.parametrize(("left", "top"), [(-1, 0), (9, 0), (0, 1)])
    def test_window_outside(self, left: int, top: int) -> None:
        with pytest.raises(ValueError, match="leaves the image"):
            prepare(gradient(24, 16), 16, "bilinear", left=left, top=top)

    def test_shrinking_does_not_alias(self) -> None:
        stripes = np.zeros((64, 64, 3), dtype=np.uint8)
        stripes[:, ::2] = 255
        small = short_side_resize(Image.fromarray(stripes), 8, "bilinear")
        assert np.abs(pixels(small) - 127.5).max() < 12

    def test_sizes(self) -> None:
        assert short_side_size(100, 37, 32) == (86, 32)
        assert short_side_size(37, 100, 32) == (32, 86)
        assert short_side_size(20, 20, 32) == (32, 32)
        assert short_side_resize(gradient(100, 37), 32, "bicubic").size == (86, 32)
        with pytest.raises(KeyError, match="nearest"):
            short_side_resize(gradient(), 16, "nearest")
