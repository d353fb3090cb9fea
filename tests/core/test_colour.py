"""Colours as a viewer shows them: every value beside one that was computed without a colour management library."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dbexp.core import colour
from dbexp.core.errors import ConfigError
from dbexp.core.hashing import file_hash
from dbexp.core.images import image_hash, read_converted, read_rgb
from tests.core import icc

COLOURS = np.array([[255, 0, 0], [128, 128, 128], [200, 100, 50], [90, 120, 60], [250, 240, 230]], dtype=np.uint8)
LOSSLESS: dict[str, dict[str, Any]] = {"png": {}, "tif": {}, "webp": {"lossless": True}}
LOSSY: dict[str, dict[str, Any]] = {
    "jpg": {"quality": 100, "subsampling": 0},
    "avif": {"quality": 100, "subsampling": "4:4:4"},
}
IN_P3 = icc.levels(icc.light(COLOURS / 255) @ icc.P3_TO_SRGB.T)


def patches(colours: NDArray[np.uint8] = COLOURS) -> Image.Image:
    """Squares of 16 pixels, one of each colour, so that a lossy format keeps their middles."""
    return Image.fromarray(np.repeat(np.repeat(colours[None], 16, axis=0), 16, axis=1))


def middles(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image, dtype=int)[8, 8::16]


def saved(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    (image or patches()).save(path, **options)
    return path


def state(path: Path) -> tuple[str, str]:
    """Name of the colour space that a file was converted from, and what is wrong with its profile."""
    conversion = read_converted(path)[1]
    return ("", "") if conversion is None else (conversion.name, conversion.fault)


@pytest.mark.parametrize(("suffix", "options"), (LOSSLESS | LOSSY).items())
def test_a_photograph_in_display_p3(tmp_path: Path, suffix: str, options: dict[str, Any]) -> None:
    path = saved(tmp_path / f"a.{suffix}", icc_profile=icc.rgb(), **options)
    assert np.abs(middles(read_rgb(path)) - IN_P3).max() <= (1 if suffix in LOSSLESS else 4)
    assert state(path) == ("Test P3", "")
    assert image_hash(path) != file_hash(path)


@pytest.mark.parametrize(("suffix", "options"), (LOSSLESS | LOSSY).items())
@pytest.mark.parametrize("profile", [None, icc.rgb(icc.SRGB_COLUMNS, name="sRGB")])
def test_srgb_stays_equal_to_the_bit(
    tmp_path: Path, suffix: str, options: dict[str, Any], profile: bytes | None
) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    path = saved(tmp_path / f"a.{suffix}", noise, **options, **({"icc_profile": profile} if profile else {}))
    with Image.open(path) as image:
        stored = np.asarray(image)
    assert np.array_equal(np.asarray(read_rgb(path)), stored)
    assert state(path) == ("", "")
    assert image_hash(path) == file_hash(path)


def test_channels_that_change_places(tmp_path: Path) -> None:
    green, blue, red = icc.SRGB_COLUMNS
    path = saved(tmp_path / "a.png", icc_profile=icc.rgb((green, blue, red)))
    assert np.abs(middles(read_rgb(path)) - COLOURS).max() <= 1, "the first channel is red in both"
    path = saved(tmp_path / "b.png", icc_profile=icc.rgb((blue, red, green)))
    assert np.abs(middles(read_rgb(path)) - COLOURS[:, [2, 0, 1]]).max() <= 1


class TestModes:
    def test_transparency_is_composited_after_the_conversion(self, tmp_path: Path) -> None:
        image = Image.new("RGBA", (2, 1), (200, 100, 50, 255))
        image.putpixel((1, 0), (200, 100, 50, 0))
        path = saved(tmp_path / "a.png", image, icc_profile=icc.rgb())
        opaque, clear = np.asarray(read_rgb(path), dtype=int)[0]
        assert np.abs(opaque - IN_P3[2]).max() <= 1
        assert clear.tolist() == [255, 255, 255]

    @pytest.mark.parametrize("transparency", [{}, {"transparency": 1}])
    def test_palette(self, tmp_path: Path, transparency: dict[str, int]) -> None:
        image = Image.new("P", (2, 1))
        image.putpalette([200, 100, 50, 90, 120, 60])
        image.putpixel((1, 0), 1)
        first, second = np.asarray(
            read_rgb(saved(tmp_path / "a.png", image, icc_profile=icc.rgb(), **transparency)), dtype=int
        )[0]
        assert np.abs(first - IN_P3[2]).max() <= 1
        assert np.abs(second - (255 if transparency else IN_P3[3])).max() <= 1

    def test_gray(self, tmp_path: Path) -> None:
        ramp = np.arange(256, dtype=np.uint8)
        expected = icc.levels((ramp / 255) ** 1.8)
        path = saved(tmp_path / "a.png", Image.fromarray(ramp[None]), icc_profile=icc.gray(1.8))
        shown = np.asarray(read_rgb(path), dtype=int)[0]
        assert np.abs(shown - expected[:, None]).max() <= 1
        assert np.abs(shown - ramp[:, None]).max() > 10
        path = saved(tmp_path / "b.png", Image.fromarray(ramp[None]), icc_profile=icc.gray(None))
        assert state(path) == ("", "")

    def test_gray_with_transparency(self, tmp_path: Path) -> None:
        image = Image.new("LA", (2, 1), (100, 255))
        image.putpixel((1, 0), (100, 0))
        path = saved(tmp_path / "a.png", image, icc_profile=icc.gray(1.8))
        expected = int(icc.levels(np.array((100 / 255) ** 1.8)))
        assert np.abs(np.asarray(read_rgb(path), dtype=int)[0] - [[expected] * 3, [255] * 3]).max() <= 1

    def test_sixteen_bits(self, tmp_path: Path) -> None:
        deep = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
        path = saved(tmp_path / "a.png", Image.fromarray(deep), icc_profile=icc.gray(1.8))
        expected = icc.levels((np.array([0, 100, 255]) / 255) ** 1.8)
        assert np.abs(np.asarray(read_rgb(path), dtype=int)[0, :, 0] - expected).max() <= 1

    def test_gray_numbers_under_a_profile_for_colours(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.png", Image.new("L", (1, 1), 100), icc_profile=icc.rgb(gamma=1.8))
        expected = int(icc.levels(np.array((100 / 255) ** 1.8)))
        assert np.abs(np.asarray(read_rgb(path), dtype=int)[0, 0] - expected).max() <= 1

    @pytest.mark.parametrize("suffix", ["tif", "jpg"])
    def test_cmyk(self, tmp_path: Path, suffix: str) -> None:
        inks = np.array(list(icc.INKS), dtype=np.uint8) * 255
        image = Image.fromarray(np.repeat(np.repeat(inks[None], 16, axis=0), 16, axis=1), "CMYK")
        options = LOSSY.get(suffix, {})
        path = saved(tmp_path / f"a.{suffix}", image, icc_profile=icc.cmyk(), **options)
        expected = np.array([icc.of_lab(lab) for lab in icc.INKS.values()])
        assert np.abs(middles(read_rgb(path)) - expected).max() <= 4
        assert state(path) == ("Test inks", "")
        plain = saved(tmp_path / f"b.{suffix}", image, **options)
        with Image.open(plain) as opened:
            assert np.array_equal(np.asarray(read_rgb(plain)), np.asarray(opened.convert("RGB")))
        assert image_hash(plain) == file_hash(plain)

    def test_lab(self, tmp_path: Path) -> None:
        image = Image.new("LAB", (2, 1), (round(60 * 2.55), 128 + 30, 128 - 40))
        image.putpixel((1, 0), (255, 128, 128))
        path = saved(tmp_path / "a.tif", image)
        colour, white = np.asarray(read_rgb(path), dtype=int)[0]
        assert np.abs(colour - icc.of_lab((60, 30, -40))).max() <= 2
        assert np.abs(white - 255).max() <= 1
        assert image_hash(path) != file_hash(path)


class TestProfilesThatCannotBeUsed:
    """A word, never a crash; the numbers are then taken for sRGB, and keys do not move."""

    @pytest.mark.parametrize(
        ("profile", "fault"),
        [
            (b"not a profile", "its colour profile is damaged"),
            (icc.rgb()[:200], "its colour profile is damaged"),
            (icc.rgb()[:400] + bytes(len(icc.rgb()) - 400), "its colour profile is damaged"),
            (bytes(4000), "its colour profile is damaged"),
            (icc.rgb(columns=((0, 0, 0),) * 3, name="void"), "its colour profile (void) makes all colours alike"),
            (icc.gray(1.8, name="dots"), "its colour profile (dots) is not for RGB images"),
            (icc.cmyk(name="inks"), "its colour profile (inks) is not for RGB images"),
        ],
        ids="words cut hollow zeros void gray cmyk".split(),
    )
    def test_a_word(self, tmp_path: Path, profile: bytes, fault: str) -> None:
        path = saved(tmp_path / "a.png", icc_profile=profile)
        assert np.array_equal(middles(read_rgb(path)), COLOURS)
        assert state(path)[1] == fault
        assert image_hash(path) == file_hash(path)

    @pytest.mark.parametrize("seed", range(16))
    def test_flipped_bytes(self, tmp_path: Path, seed: int) -> None:
        generator = np.random.default_rng(seed)
        profile = bytearray(icc.rgb(gamma=2.2) if seed % 2 else icc.cmyk())
        for position in generator.integers(0, 400, 6):
            profile[position] = generator.integers(256)
        image = patches() if seed % 2 else patches().convert("CMYK")
        assert read_rgb(saved(tmp_path / "a.tif", image, icc_profile=bytes(profile))).size == image.size

    def test_a_part_of_it_is_missing(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.jpg", icc_profile=icc.rgb() + bytes(80_000), quality=100)
        data = path.read_bytes()
        start = data.rindex(b"ICC_PROFILE\0") - 4
        (length,) = struct.unpack(">H", data[start + 2 : start + 4])
        path.write_bytes(data[:start] + data[start + 2 + length :])
        assert state(path) == ("unknown", "its colour profile is incomplete")

    def test_its_name_cannot_speak_to_the_terminal(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "a.png", icc_profile=icc.rgb(name="\x1b[31mred\n" + "x" * 500))
        name, _ = state(path)
        assert name.isprintable() and len(name) <= 60 and name.startswith("[31mred")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(path: Path, kind: bytes, data: bytes) -> Path:
    """A PNG with a chunk more, before its pixels."""
    content = path.read_bytes()
    path.write_bytes(content[:33] + chunk(kind, data) + content[33:])
    return path


class TestWithoutAProfile:
    @pytest.mark.parametrize(("points", "name"), [((12, 13), "Display P3"), ((1, 13), ""), ((2, 2), ""), ((1, 1), "")])
    @pytest.mark.parametrize("suffix", ["png", "avif"])
    def test_code_points(self, tmp_path: Path, suffix: str, points: tuple[int, int], name: str) -> None:
        path = saved(tmp_path / f"a.{suffix}", **LOSSY.get(suffix, {}))
        if suffix == "png":
            with_chunk(path, b"cICP", bytes([*points, 0, 1]))
        else:
            data = path.read_bytes()
            start = data.index(b"colrnclx") + 8
            path.write_bytes(data[:start] + struct.pack(">HH", *points) + data[start + 4 :])
        assert state(path) == (name, "")
        assert np.abs(middles(read_rgb(path)) - (IN_P3 if name else COLOURS)).max() <= (1 if suffix == "png" else 4)
        assert (image_hash(path) != file_hash(path)) == bool(name)

    def test_code_points_that_nobody_knows(self, tmp_path: Path) -> None:
        path = with_chunk(saved(tmp_path / "a.png"), b"cICP", bytes([200, 13, 0, 1]))
        assert "numbers that are not known here (primaries 200, transfer 13)" in state(path)[1]

    @pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
    def test_brighter_than_white(self, tmp_path: Path, transfer: int, name: str) -> None:
        path = with_chunk(saved(tmp_path / "a.png"), b"cICP", bytes([9, transfer, 0, 1]))
        with pytest.raises(ConfigError, match=rf"a\.png: is an HDR image \({name}\).*SDR"):
            read_rgb(path)
        assert image_hash(path) == file_hash(path)

    def test_a_camera_that_was_set_to_adobe_rgb(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x8769] = {0xA001: 0xFFFF, 0xA005: {1: "R03"}}
        exif[0x0112] = 3
        path = saved(tmp_path / "a.jpg", exif=exif.tobytes(), **LOSSY["jpg"])
        expected = icc.levels((COLOURS / 255) ** (563 / 256) @ icc.ADOBE_TO_SRGB.T)
        assert state(path) == ("Adobe RGB (by Exif)", "")
        assert np.abs(middles(read_rgb(path))[::-1] - expected).max() <= 4, "turned upright, and converted"
        with_profile = saved(
            tmp_path / "b.jpg", exif=exif.tobytes(), icc_profile=icc.rgb(icc.SRGB_COLUMNS), **LOSSY["jpg"]
        )
        assert state(with_profile) == ("", ""), "a profile says it better"

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    @pytest.mark.parametrize("broken", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 40])
    def test_broken_exif(self, tmp_path: Path, broken: bytes) -> None:
        assert state(saved(tmp_path / "a.jpg", exif=broken)) == ("", "")

    def test_linear_light_in_a_png(self, tmp_path: Path) -> None:
        path = with_chunk(saved(tmp_path / "a.png"), b"gAMA", struct.pack(">I", 100_000))
        assert state(path) == ("gamma 1", "")
        assert np.abs(middles(read_rgb(path)) - icc.levels(COLOURS / 255)).max() <= 1

    def test_what_most_tools_write_into_a_png(self, tmp_path: Path) -> None:
        path = with_chunk(saved(tmp_path / "a.png"), b"gAMA", struct.pack(">I", 45_455))
        srgb = (31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
        with_chunk(path, b"cHRM", struct.pack(">8I", *srgb))
        assert state(path) == ("", "")
        assert np.array_equal(middles(read_rgb(path)), COLOURS)

    @pytest.mark.parametrize("gamma", [0, 1, 4_000_000_000])
    def test_an_absurd_gamma(self, tmp_path: Path, gamma: int) -> None:
        path = with_chunk(saved(tmp_path / "a.png"), b"gAMA", struct.pack(">I", gamma))
        with_chunk(path, b"cHRM", bytes(32))
        assert "numbers that cannot be" in state(path)[1]
        assert np.array_equal(middles(read_rgb(path)), COLOURS)


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """One red pixel, byte for byte the same whatever wrote it."""
    header = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    written = [header, *chunks, (b"IDAT", zlib.compress(b"\0\xff\0\0", 0)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(chunk, *zip(*written, strict=True)))


def test_an_image_that_was_converted_otherwise_has_another_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, plain = tmp_path / "a.png", tmp_path / "b.png"
    path.write_bytes(png((b"cICP", bytes([12, 13, 0, 1]))))
    plain.write_bytes(png())
    assert image_hash(path) == "76e8ad4d5a955949091fd1a518ef8c10d9845f84265fbe83b7849a39fad5eaaa"
    assert image_hash(plain) == file_hash(plain)
    monkeypatch.setattr(colour, "VERSION", 2)
    path, plain = path.rename(tmp_path / "c.png"), plain.rename(tmp_path / "d.png")
    assert image_hash(path) != "76e8ad4d5a955949091fd1a518ef8c10d9845f84265fbe83b7849a39fad5eaaa"
    assert image_hash(plain) == file_hash(plain)
