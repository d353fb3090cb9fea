"""ICC profiles of version 2, made from the specification for the tests, apart from `dbexp.core.colour`."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

D50 = (0.9642, 1.0, 0.8249)
P3_TO_SRGB = np.array(  # CSS Color Module Level 4, section 10.5: linear display-p3 to linear srgb, by way of XYZ
    [[1.2249401, -0.2249404, 0.0], [-0.0420569, 1.0420571, 0.0], [-0.0196376, -0.0786361, 1.0982735]]
)
P3_COLUMNS = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
SRGB_COLUMNS = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE_TO_SRGB = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])
"""Of linear light; both whites are D65 and two of the primaries are shared."""


def light(levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB numbers in [0, 1] as linear light."""
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def levels(linear: NDArray[np.float64]) -> NDArray[np.int64]:
    """Linear light as sRGB numbers 0..255."""
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(int)


def of_lab(lab: Sequence[float]) -> NDArray[np.int64]:
    """sRGB numbers 0..255 of CIELAB relative to D50."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * D50
    return levels(np.linalg.solve(np.array(SRGB_COLUMNS).T, xyz))


def _numbers(values: Sequence[float]) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _profile(space: bytes, kind: bytes, pcs: bytes, tags: Mapping[bytes, bytes], name: str) -> bytes:
    label = name.encode() + b"\0"
    every = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(label)) + label + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": b"XYZ \0\0\0\0" + _numbers(D50),
        **tags,
    }
    offset, table, body = 132 + 12 * len(every), b"", b""
    for tag, data in every.items():
        table += tag + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4xI", offset + len(body), 0x02100000) + kind + space + pcs + bytes(12) + b"acsp"
    header += bytes(28) + _numbers(D50)
    return header.ljust(128, b"\0") + struct.pack(">I", len(every)) + table + body


def curve(gamma: float | None) -> bytes:
    """A tone curve; None: sRGB's, as a table."""
    if gamma is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    table = np.round(light(np.linspace(0, 1, 4096)) * 65535).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(table)) + table.tobytes()


def rgb(columns: Sequence[Sequence[float]] = P3_COLUMNS, gamma: float | None = None, name: str = "Test P3") -> bytes:
    """A display: XYZ of its red, green and blue relative to D50."""
    tags = {letter + b"TRC": curve(gamma) for letter in (b"r", b"g", b"b")}
    for letter, column in zip((b"r", b"g", b"b"), columns, strict=True):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + _numbers(column)
    return _profile(b"RGB ", b"mntr", b"XYZ ", tags, name)


def gray(gamma: float | None, name: str = "Test gray") -> bytes:
    return _profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": curve(gamma)}, name)


INKS = {
    (0, 0, 0, 0): (100, 0, 0),
    (1, 0, 0, 0): (60, -30, -40),
    (0, 1, 0, 0): (50, 65, 0),
    (0, 0, 1, 0): (90, -5, 80),
}
"""Cyan, magenta, yellow, black -> CIELAB of what `cmyk` says they print; everything else is black."""


def cmyk(name: str = "Test inks") -> bytes:
    """A printer: a table with the corners of the cube of inks (`lut8Type`)."""
    corners = b"".join(
        bytes([round(lab[0] * 2.55), round(lab[1] + 128), round(lab[2] + 128)])
        for corner in np.ndindex(2, 2, 2, 2)
        for lab in [INKS.get(corner, (0, 0, 0))]
    )
    ramp = bytes(range(256))
    matrix = _numbers([1, 0, 0, 0, 1, 0, 0, 0, 1])
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + corners + ramp * 3
    return _profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table}, name)
