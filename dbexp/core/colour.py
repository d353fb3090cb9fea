"""The colour space that an image's numbers are in, and the way from there to sRGB.

Everything here takes numbers for sRGB: base models and metric networks were trained on what a browser shows. Phones
write Display P3, cameras Adobe RGB, print shops CMYK; their numbers, taken for sRGB, are other colours. A file says
what it means by an ICC profile (PNG, JPEG, TIFF, WebP, AVIF), by code points of ITU-T H.273 (PNG, AVIF), by Exif
(JPEG), or by gAMA and cHRM (PNG). An image that says nothing, or sRGB, is left alone to the bit.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

VERSION = 1
"""Of what conversion makes of numbers; part of the identity of a converted image (`dbexp.core.images.image_hash`)."""
HEAD_BYTES = 1 << 16
"""Of a file's beginning that `conversion` needs to see: code points stand before the pixels."""

_SAME = 2
"""Levels of 255 that the numbers of a profile may differ from sRGB's and be called sRGB: profiles of the same name from
different makers round their curves differently."""
_LEAST_CONTRAST = 64
"""Levels of 255 between the brightest and the darkest number that a profile must be able to tell apart."""
_NAME_CHARACTERS = 60
# Photoshop's defaults, and what browsers do with profiles that are no tables: white stays white, black stays black
_INTENT = ImageCms.Intent.RELATIVE_COLORIMETRIC
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION

_GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
_RGB_MODES = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "YCbCr", *_GRAY_MODES)
_TAKEN_BY = {"RGB": ("RGB", _RGB_MODES), "GRAY": ("L", _GRAY_MODES), "CMYK": ("CMYK", ("CMYK",))}
"""Colour space of a profile -> mode that is converted, modes of images that can be brought to it."""

_D65, _DCI = (0.3127, 0.3290), (0.314, 0.351)
_SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_CURVE = 0.0
"""Stands for the exponent of sRGB's curve (IEC 61966-2-1), which is none."""

# ITU-T H.273, table 2: x and y of red, green, blue, white. 2 means unspecified.
_PRIMARIES = {
    1: ("sRGB", _SRGB, _D65),
    2: ("sRGB", _SRGB, _D65),
    5: ("BT.601 (625 lines)", ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060)), _D65),
    6: ("BT.601 (525 lines)", ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)), _D65),
    7: ("SMPTE 240M", ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070)), _D65),
    9: ("BT.2020", ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), _D65),
    11: ("DCI-P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), _DCI),
    12: ("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), _D65),
}
# table 3; the curves of television (1, 6, 14, 15) are displayed as sRGB's is
_TRANSFERS = {1: _CURVE, 2: _CURVE, 4: 2.2, 5: 2.8, 6: _CURVE, 8: 1.0, 13: _CURVE, 14: _CURVE, 15: _CURVE, 17: 2.6}
_HDR = {16: "PQ", 18: "HLG"}
_ADOBE = ("Adobe RGB (by Exif)", ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)), 563 / 256)

# Exif 2.32, annex D (DCF): no profile, but a colour space that is not sRGB and this name of an option file
_COLOR_SPACE, _UNCALIBRATED, _OLD_ADOBE, _INTEROP, _ADOBE_OPTION = 0xA001, 0xFFFF, 2, 0xA005, "R03"
_TYPICAL_GAMMA = (0.42, 0.50)  # gAMA that stands for sRGB's curve: 1/2.2, as every tool rounds it
_XY_TOLERANCE = 0.005


@dataclass(frozen=True)
class Conversion:
    """How an image comes to sRGB, or why it cannot."""

    name: str
    """Of the colour space, as its profile calls itself."""
    mode: str = "RGB"
    """Of Pillow: what `transform` takes."""
    transform: ImageCms.ImageCmsTransform | None = None
    """To RGB; None: the numbers are taken for sRGB, and `fault` says why."""
    fault: str = ""
    """What is wrong with the profile; empty where there is a transform."""
    hdr: str = ""
    """Name of a transfer curve that reaches brighter than white, for which there is no right value in sRGB."""

    def apply(self, image: Image.Image) -> Image.Image:
        """The image in sRGB, mode RGB, or RGBA where it has transparency.

        Args:
            image: of a mode that `conversion` saw, or of fewer bits; `transform` must not be None.
        """
        assert self.transform is not None
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        converted = ImageCms.applyTransform(image.convert(self.mode), self.transform)
        assert converted is not None  # None is for work in place
        if alpha is not None:
            converted.putalpha(alpha)
        return converted


def conversion(image: Image.Image, head: bytes) -> Conversion | None:
    """What has to be done to an image so that its numbers are sRGB; None: nothing.

    Args:
        image: just opened; its pixels need not be loaded.
        head: the first `HEAD_BYTES` of its file.
    """
    if image.mode == "LAB":  # of CIE, which has one meaning only; Pillow cannot show it without a transform
        return Conversion("CIELAB", "LAB", _to_srgb(ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")), "LAB"))
    if "icc_profile" in image.info:
        return _by_profile(image.info["icc_profile"], image.mode)
    if image.mode not in _RGB_MODES:
        return None
    if (points := _code_points(image.format or "", head)) is not None:
        return _by_code_points(*points)
    if image.format in ("JPEG", "MPO") and _says_adobe(image):
        name, primaries, gamma = _ADOBE
        return _by_numbers(name, primaries, _D65, gamma)
    if image.format == "PNG" and "gamma" in image.info and "srgb" not in image.info:
        return _by_gamma(image.info["gamma"], image.info.get("chromaticity"))
    return None


def _by_profile(profile: object, mode: str) -> Conversion | None:
    if not isinstance(profile, bytes):
        return Conversion("unknown", fault="its colour profile is incomplete")
    stated = _of_icc(profile)
    if stated is None or stated.transform is None or mode in dict(_TAKEN_BY.values())[stated.mode]:
        return stated
    return Conversion(stated.name, fault=f"its colour profile ({stated.name}) is not for {mode} images")


@lru_cache(maxsize=32)
def _of_icc(profile: bytes) -> Conversion | None:
    """The conversion that a profile stands for; None for sRGB's own."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        name, space = _printable(opened.profile.profile_description), opened.profile.xcolor_space.strip()
        if space not in _TAKEN_BY:
            return Conversion(name, fault=f"its colour profile ({name}) is for {_printable(space)} images")
        mode = _TAKEN_BY[space][0]
        transform = _to_srgb(opened, mode)
    except (OSError, ValueError, TypeError, ImageCms.PyCMSError):
        return Conversion("unknown", fault="its colour profile is damaged")
    probe = _probe(mode)
    before = np.asarray(probe.convert("RGB"), dtype=int)
    after = np.asarray(ImageCms.applyTransform(probe, transform), dtype=int)
    if np.ptp(after, axis=(0, 1)).max() < _LEAST_CONTRAST:
        return Conversion(name, fault=f"its colour profile ({name}) makes all colours alike")
    if mode != "CMYK" and np.abs(after - before).max() <= _SAME:
        return None
    return Conversion(name, mode, transform)


def _to_srgb(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", _INTENT, _FLAGS)


def _probe(mode: str) -> Image.Image:
    """An image with numbers from all over a space, gray ones among them."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 5 if mode == "CMYK" else 9).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), axis=-1)
    return Image.frombytes(mode, (grid[..., 0].size, 1), grid.tobytes())


def _printable(text: object) -> str:
    """A name from a stranger's file, fit for a terminal."""
    name = "".join(character for character in str(text or "") if character.isprintable()).strip()
    return name[:_NAME_CHARACTERS] or "unnamed"


# ------------------------------------------------------------------------------------------------ without a profile


def _code_points(form: str, head: bytes) -> tuple[int, int] | None:
    """Numbers of primaries and transfer curve, where a PNG (chunk cICP) or an AVIF (box nclx) has them."""
    if form == "PNG":
        return next(((data[0], data[1]) for kind, data in _chunks(head) if kind == b"cICP" and len(data) >= 2), None)
    start = head.find(b"colrnclx")
    if form == "AVIF" and 0 <= start <= len(head) - 12:
        primaries, transfer = struct.unpack_from(">HH", head, start + 8)
        return primaries, transfer
    return None


def _chunks(head: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, data) of the chunks of a PNG before its pixels."""
    position = 8
    while position + 8 <= len(head):
        length, kind = struct.unpack_from(">I4s", head, position)
        if kind == b"IDAT":
            return
        yield kind, head[position + 8 : position + 8 + length]
        position += 12 + length


def _by_code_points(primaries: int, transfer: int) -> Conversion | None:
    if transfer in _HDR:
        return Conversion("BT.2100", hdr=_HDR[transfer])
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        fault = f"it names its colours by numbers that are not known here (primaries {primaries}, transfer {transfer})"
        return Conversion("unknown", fault=fault)
    (name, corners, white), exponent = _PRIMARIES[primaries], _TRANSFERS[transfer]
    return _by_numbers(f"{name}, gamma {exponent:g}" if exponent else name, corners, white, exponent)


def _says_adobe(image: Image.Image) -> bool:
    """Whether a camera was set to Adobe RGB: most then write no profile."""
    exif = Image.Exif()  # not the image's own, which is written back when the image is turned upright
    try:
        exif.load(image.info.get("exif", b""))
        space = exif.get_ifd(0x8769).get(_COLOR_SPACE)
        option = exif.get_ifd(_INTEROP).get(1) if space == _UNCALIBRATED else None
    except (OSError, ValueError, LookupError, TypeError, SyntaxError, struct.error):
        return False
    return space == _OLD_ADOBE or (isinstance(option, str) and option.startswith(_ADOBE_OPTION))


def _by_gamma(gamma: float, chromaticity: Sequence[float] | None) -> Conversion | None:
    """What gAMA and cHRM mean (PNG specification, 11.3.2): exponent from light to numbers, and where colours lie."""
    low, high = _TYPICAL_GAMMA
    exponent = _CURVE if low <= gamma <= high else 1 / gamma if gamma > 0 else -1
    white, primaries = _D65, _SRGB
    if chromaticity is not None and len(chromaticity) == 8:
        pairs = [(float(x), float(y)) for x, y in zip(chromaticity[::2], chromaticity[1::2], strict=True)]
        if np.abs(np.subtract(pairs, [_D65, *_SRGB])).max() > _XY_TOLERANCE:
            white, primaries = pairs[0], (pairs[1], pairs[2], pairs[3])
    name = f"gamma {1 / gamma:.2g}" if exponent > 0 else "primaries of its own"
    return _by_numbers(name, primaries, white, exponent)


def _by_numbers(name: str, primaries: Any, white: tuple[float, float], exponent: float) -> Conversion | None:
    try:
        profile = icc_profile(name, primaries, white, exponent)
    except (ValueError, ZeroDivisionError, OverflowError, np.linalg.LinAlgError, struct.error):
        return Conversion(name, fault=f"it describes its colours by numbers that cannot be ({name})")
    return _of_icc(profile)


def icc_profile(name: str, primaries: Any, white: tuple[float, float], exponent: float) -> bytes:
    """An ICC profile (ICC.1:2010, version 4.3) of a display.

    Args:
        name: that it calls itself.
        primaries: x and y of red, green and blue.
        white: x and y.
        exponent: of the curve from numbers to light; 0: sRGB's curve.

    Raises:
        ValueError: these are no colours.
    """
    if not 0 <= exponent <= 10:
        raise ValueError(f"an exponent of {exponent}")
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T  # XYZ of each primary at Y = 1
    target = np.array([white[0] / white[1], 1, (1 - white[0] - white[1]) / white[1]])
    to_xyz = columns * np.linalg.solve(columns, target)  # together they make white
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])  # Bradford
    d50 = np.array([0.9642, 1.0, 0.8249])  # the white of profiles
    adapted = np.linalg.inv(cone) @ np.diag((cone @ d50) / (cone @ target)) @ cone @ to_xyz
    srgb = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    curve = b"para" + bytes(4) + (struct.pack(">HH", 3, 0) + _fixed(*srgb) if exponent == 0 else bytes(4))
    curve += b"" if exponent == 0 else _fixed(exponent)
    label = name.encode("utf-16-be")
    text = b"mluc" + bytes(4) + struct.pack(">II4sII", 1, 12, b"enUS", len(label), 28) + label
    tags = {b"desc": text, b"cprt": text, b"wtpt": b"XYZ " + bytes(4) + _fixed(*d50)}
    for letter, column in zip(b"rgb", adapted.T, strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ " + bytes(4) + _fixed(*column)
        tags[bytes([letter]) + b"TRC"] = curve
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    fields = (start + len(body), 0x04300000, b"mntrRGB XYZ ", b"acsp", _fixed(*d50))
    header = struct.pack(">I4xI12s12x4s28x12s48x", *fields)
    return header + struct.pack(">I", len(tags)) + table + body


def _fixed(*values: float) -> bytes:
    """Numbers as s15Fixed16."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))
