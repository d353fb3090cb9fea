"""Colours and the pen: every shape of the world is a polygon or a line in some local frame."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw

RGB: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]

SUPERSAMPLING = 3
"""Pictures are drawn this many times larger and reduced by a box filter, which is what smooths every edge."""

OUTLINE_WIDTH = 0.011
"""Outline width as a fraction of the picture's width: about two thirds of a pixel at 64."""

TAU = 2.0 * math.pi

WHITE: RGB = (248, 248, 246)
INK: RGB = (26, 22, 28)
GOLD: RGB = (246, 208, 66)

COLOURS: dict[str, RGB] = {
    "red": (214, 48, 44),
    "purple": (132, 62, 176),
    "blue": (50, 98, 206),
    "green": (58, 158, 76),
    "yellow": (240, 204, 52),
    "orange": (238, 134, 42),
    "pink": (240, 142, 180),
    "white": (244, 244, 240),
    "black": (48, 46, 54),
    "brown": (138, 88, 48),
    "gray": (142, 144, 150),
}
"""Colour words of the captions, as objects wear them."""

FURS: dict[str, RGB] = {
    "brown": (142, 92, 52),
    "black": (54, 50, 56),
    "white": (240, 236, 226),
    "gray": (140, 140, 146),
    "golden": (222, 172, 92),
}
"""Natural coats of dogs and cats."""


def clamp(value: float) -> int:
    """Round to the nearest channel value in 0..255."""
    return max(0, min(255, round(value)))


def shade(colour: RGB, factor: float) -> RGB:
    """Scale a colour: below 1 darkens, above 1 lightens."""
    red, green, blue = colour
    return clamp(red * factor), clamp(green * factor), clamp(blue * factor)


def mix(first: RGB, second: RGB, share: float) -> RGB:
    """`first` at share 0, `second` at share 1, linear between."""
    red, green, blue = (clamp(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def jitter(colour: RGB, rng: random.Random, amount: float = 12.0) -> RGB:
    """Move every channel by up to `amount` of 255, independently."""
    red, green, blue = (clamp(value + rng.uniform(-amount, amount)) for value in colour)
    return red, green, blue


def is_dark(colour: RGB) -> bool:
    """Whether white lines are easier to see on this colour than black ones."""
    return sum(colour) < 330


class Pen:
    """Draws on an image in a local frame.

    A frame has its origin at (x, y) of the picture, where the picture is 1 wide and 1 high with y downwards, a scale
    (picture widths per local unit), a mirror flag and a tilt in radians.
    """

    def __init__(
        self,
        image: Image.Image,
        x: float = 0.0,
        y: float = 0.0,
        scale: float = 1.0,
        *,
        flip: bool = False,
        tilt: float = 0.0,
    ) -> None:
        self.image = image
        self._draw = ImageDraw.Draw(image)
        self._origin = (x, y)
        self._scale = scale
        self._sign = -1.0 if flip else 1.0
        self._cos, self._sin = math.cos(tilt), math.sin(tilt)
        self._outline_px = max(1, round(OUTLINE_WIDTH * image.width))

    def pixel(self, x: float, y: float) -> Point:
        """Local coordinates to pixels of the (supersampled) image."""
        x *= self._sign
        turned_x, turned_y = x * self._cos - y * self._sin, x * self._sin + y * self._cos
        size = self.image.width
        return (self._origin[0] + turned_x * self._scale) * size, (self._origin[1] + turned_y * self._scale) * size

    def polygon(self, points: Sequence[Point], fill: RGB, outline: RGB | None = None) -> None:
        """Fill a closed polygon, with an optional outline."""
        pixels = [self.pixel(x, y) for x, y in points]
        self._draw.polygon(pixels, fill=fill)
        if outline is not None:
            self._draw.line([*pixels, pixels[0]], fill=outline, width=self._outline_px, joint="curve")

    def ellipse(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        fill: RGB,
        outline: RGB | None = None,
        *,
        angle: float = 0.0,
        start: float = 0.0,
        end: float = TAU,
    ) -> None:
        """Fill an ellipse, or the part of it between two angles (0 is right, a quarter turn is down)."""
        sides = 8 if max(rx, ry) * self._scale < 0.03 else 24
        cos, sin = math.cos(angle), math.sin(angle)
        angles = [start + (end - start) * i / sides for i in range(sides + 1)]
        rim = [(rx * math.cos(a), ry * math.sin(a)) for a in angles]
        self.polygon([(x + px * cos - py * sin, y + px * sin + py * cos) for px, py in rim], fill, outline)

    def dot(self, x: float, y: float, radius: float, fill: RGB, outline: RGB | None = None) -> None:
        """Fill a circle."""
        self.ellipse(x, y, radius, radius, fill, outline)

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        fill: RGB,
        outline: RGB | None = None,
        *,
        radius: float = 0.0,
    ) -> None:
        """Fill a rectangle, with rounded corners when `radius` > 0."""
        if radius <= 0:
            self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, outline)
            return
        corners = (
            (x1 - radius, y0 + radius, -TAU / 4),
            (x1 - radius, y1 - radius, 0.0),
            (x0 + radius, y1 - radius, TAU / 4),
            (x0 + radius, y0 + radius, TAU / 2),
        )
        points = [
            (cx + radius * math.cos(first + TAU / 4 * i / 5), cy + radius * math.sin(first + TAU / 4 * i / 5))
            for cx, cy, first in corners
            for i in range(6)
        ]
        self.polygon(points, fill, outline)

    def line(self, points: Sequence[Point], fill: RGB, width: float, *, round_ends: bool = False) -> None:
        """Draw a line of the given width in local units."""
        pixels = [self.pixel(x, y) for x, y in points]
        width_px = max(1, round(width * self._scale * self.image.width))
        self._draw.line(pixels, fill=fill, width=width_px, joint="curve")
        if round_ends:
            for x, y in (points[0], points[-1]):
                self.ellipse(x, y, width / 2, width / 2, fill)

    def star(self, x: float, y: float, radius: float, fill: RGB, *, tips: int = 5, waist: float = 0.45) -> None:
        """Fill a star with one tip upwards; `waist` is the inner radius over the outer."""
        points = []
        for i in range(2 * tips):
            reach = radius if i % 2 == 0 else radius * waist
            angle = -TAU / 4 + TAU * i / (2 * tips)
            points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        self.polygon(points, fill)

    def heart(self, x: float, y: float, size: float, fill: RGB) -> None:
        """Fill a heart; `size` is half its width."""
        for side in (-1, 1):
            self.ellipse(x + side * size * 0.45, y - size * 0.3, size * 0.54, size * 0.52, fill)
        self.polygon([(x - size * 0.95, y - size * 0.1), (x + size * 0.95, y - size * 0.1), (x, y + size)], fill)


def vertical_gradient(image: Image.Image, y0: float, y1: float, top: RGB, bottom: RGB) -> None:
    """Fill the band between two heights (fractions of the picture) with a smooth change of colour."""
    first, last = round(y0 * image.height), round(y1 * image.height)
    if last <= first:
        return
    ramp = Image.new("RGB", (1, 2))
    ramp.putpixel((0, 0), top)
    ramp.putpixel((0, 1), bottom)
    image.paste(ramp.resize((image.width, last - first), Image.Resampling.BILINEAR), (0, first))
