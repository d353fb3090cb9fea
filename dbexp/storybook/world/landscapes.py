"""Backgrounds in the open air. A painter fills the whole picture; random numbers move and tint its parts a little."""

from __future__ import annotations

import math
import random

from PIL import Image

from dbexp.storybook.world.pen import RGB, WHITE, Pen, jitter, mix, shade, vertical_gradient

SKY: RGB = (150, 204, 244)
GRASS: RGB = (120, 178, 88)
LEAVES: tuple[RGB, ...] = ((226, 110, 40), (206, 66, 40), (240, 176, 56))
CLOTHES: tuple[RGB, ...] = ((70, 90, 150), (176, 66, 70), (84, 132, 90), (210, 160, 70), (120, 84, 140), (70, 70, 80))
SKINS: tuple[RGB, ...] = ((240, 204, 170), (198, 146, 104), (124, 84, 60))


def _sky(image: Image.Image, horizon: float, rng: random.Random) -> RGB:
    """Paint the sky down to `horizon`, return the colour at the horizon."""
    top = jitter(SKY, rng, 10)
    bottom = mix(top, (255, 255, 255), 0.55)
    vertical_gradient(image, 0.0, horizon, top, bottom)
    return bottom


def _ground(image: Image.Image, horizon: float, colour: RGB) -> Pen:
    """Paint the ground from `horizon` down, return a pen for the whole picture."""
    vertical_gradient(image, horizon, 1.0, shade(colour, 0.94), shade(colour, 1.04))
    return Pen(image)


def jungle(image: Image.Image, rng: random.Random) -> None:
    """Dark green, lianas, large leaves."""
    vertical_gradient(image, 0.0, 0.8, (66, 134, 64), (30, 84, 42))
    pen = _ground(image, 0.8, (62, 98, 44))
    for i in range(3):
        x = (i + rng.uniform(0.2, 0.8)) / 3
        pen.line([(x, 0.0), (x + rng.uniform(-0.08, 0.08), 0.55)], (98, 72, 42), 0.03)
    for i in range(18):
        x, y = (i % 6 + rng.random()) / 6, (i // 6 + rng.random()) * 0.26
        green = jitter(rng.choice(((38, 122, 48), (72, 164, 62), (24, 94, 48))), rng, 8)
        angle = rng.uniform(0.3, 1.2) * rng.choice((-1, 1))
        pen.ellipse(x, y, 0.13, 0.046, green, shade(green, 0.72), angle=angle)


def snow(image: Image.Image, rng: random.Random) -> None:
    """White ground, two snowy firs, large flakes."""
    horizon = rng.uniform(0.54, 0.6)
    vertical_gradient(image, 0.0, horizon, (166, 190, 218), (212, 222, 236))
    pen = _ground(image, horizon, (242, 246, 252))
    for x in (rng.uniform(0.06, 0.2), rng.uniform(0.8, 0.94)):
        pen.box(x - 0.02, horizon - 0.02, x + 0.02, horizon + 0.05, (104, 76, 56))
        for k in range(3):
            y, half = horizon - 0.11 * k, 0.13 - 0.025 * k
            pen.polygon([(x - half, y), (x + half, y), (x, y - 0.18)], (58, 112, 90))
            pen.polygon([(x - half * 0.4, y - 0.11), (x + half * 0.4, y - 0.11), (x, y - 0.18)], WHITE)
    for i in range(16):
        pen.dot((i % 4 + rng.random()) / 4, (i // 4 + rng.random()) / 5, 0.013, WHITE)


def beach(image: Image.Image, rng: random.Random) -> None:
    """Sea, sand, a sun and a palm."""
    horizon = rng.uniform(0.5, 0.56)
    _sky(image, horizon - 0.1, rng)
    vertical_gradient(image, horizon - 0.1, horizon + 0.08, (38, 126, 190), (96, 194, 216))
    pen = _ground(image, horizon + 0.06, (238, 214, 160))
    pen.ellipse(0.5, horizon + 0.08, 0.8, 0.025, (246, 250, 250))
    pen.ellipse(0.5, horizon + 0.11, 0.9, 0.035, (234, 208, 154))
    side = rng.choice((0.12, 0.88))
    pen.dot(1.0 - side, rng.uniform(0.12, 0.18), 0.085, (252, 226, 90))
    pen.line([(side, horizon + 0.16), (side + 0.03, 0.22)], (132, 94, 52), 0.04)
    for k in range(5):
        angle = k * 1.2566
        x, y = side + 0.03 + 0.09 * math.cos(angle), 0.2 + 0.05 * math.sin(angle)
        pen.ellipse(x, y, 0.11, 0.032, (48, 142, 62), angle=angle)


def cobblestone(image: Image.Image, rng: random.Random) -> None:
    """A street of round stones in front of a wall with windows."""
    wall = jitter((192, 166, 146), rng, 8)
    vertical_gradient(image, 0.0, 0.48, wall, shade(wall, 0.94))
    pen = _ground(image, 0.48, (88, 88, 96))
    shift = rng.uniform(-0.06, 0.06)
    for i in range(3):
        x = 0.08 + 0.34 * i + shift
        pen.box(x, 0.1, x + 0.17, 0.34, (108, 132, 156), (92, 68, 52))
    y, row = 0.53, 0
    while y < 1.05:
        size = 0.055 + 0.07 * (y - 0.5)
        for i in range(int(1 / (2.1 * size)) + 2):
            x = i * 2.1 * size + (row % 2) * size - size
            pen.ellipse(x, y, size * 0.94, size * 0.62, jitter((154, 152, 152), rng, 12))
        y, row = y + size * 1.3, row + 1


def city(image: Image.Image, rng: random.Random) -> None:
    """A skyline with lit windows behind a road."""
    vertical_gradient(image, 0.0, 0.6, (136, 182, 226), (214, 222, 232))
    pen = Pen(image)
    x = rng.uniform(-0.08, 0.0)
    while x < 1.0:
        width, top = rng.uniform(0.15, 0.2), rng.uniform(0.06, 0.34)
        wall = jitter(rng.choice(((104, 112, 134), (148, 138, 136), (84, 98, 124))), rng, 8)
        pen.box(x, top, x + width, 0.64, wall, shade(wall, 0.7))
        for column in range(2):
            for row in range(int((0.58 - top) / 0.1)):
                left, upper = x + 0.025 + column * (width - 0.1), top + 0.04 + 0.1 * row
                lit = (250, 230, 140) if rng.random() < 0.6 else shade(wall, 0.7)
                pen.box(left, upper, left + 0.05, upper + 0.055, lit)
        x += width + 0.008
    vertical_gradient(image, 0.64, 1.0, (108, 108, 114), (126, 126, 132))
    pen.box(0.0, 0.64, 1.0, 0.69, (178, 178, 182))


def mountain(image: Image.Image, rng: random.Random) -> None:
    """Snow-capped peaks above a meadow."""
    horizon = rng.uniform(0.56, 0.62)
    _sky(image, horizon, rng)
    pen = Pen(image)
    first = rng.uniform(0.14, 0.26)
    for x, height, half in ((first, 0.4, 0.36), (first + 0.62, 0.48, 0.42), (first + 0.3, 0.3, 0.28)):
        rock = jitter((108, 110, 134), rng, 8)
        pen.polygon([(x - half, horizon + 0.02), (x, horizon - height), (x + half, horizon + 0.02)], rock)
        cap = [(-0.32, 0.68), (0.0, 1.0), (0.32, 0.68), (0.12, 0.6), (0.0, 0.72), (-0.14, 0.58)]
        pen.polygon([(x + half * px, horizon - height * py) for px, py in cap], WHITE)
    _ground(image, horizon, jitter(GRASS, rng, 8))


def blue_house(image: Image.Image, rng: random.Random) -> None:
    """A blue house with a red roof on a lawn."""
    horizon = 0.62
    _sky(image, horizon, rng)
    pen = _ground(image, horizon, jitter(GRASS, rng, 8))
    x, blue = rng.uniform(0.04, 0.42), jitter((58, 108, 206), rng, 10)
    pen.box(x, 0.26, x + 0.54, horizon + 0.05, blue, shade(blue, 0.6))
    pen.polygon([(x - 0.07, 0.28), (x + 0.27, 0.03), (x + 0.61, 0.28)], (160, 68, 58), (104, 42, 38))
    for left in (x + 0.06, x + 0.36):
        pen.box(left, 0.33, left + 0.12, 0.46, (250, 242, 196), WHITE)
    pen.box(x + 0.21, 0.42, x + 0.33, horizon + 0.05, (112, 68, 42), (70, 42, 28))


def wheat_field(image: Image.Image, rng: random.Random) -> None:
    """Golden ears up to the horizon."""
    _sky(image, 0.45, rng)
    pen = _ground(image, 0.44, (226, 184, 82))
    for row in range(4):
        y, size = 0.47 + 0.15 * row, 0.7 + 0.3 * row
        for i in range(12):
            x, lean = (i + 0.5 * (row % 2) + rng.uniform(-0.2, 0.2)) / 11.5, rng.uniform(-0.02, 0.02)
            pen.line([(x, y + 0.2), (x + lean, y)], (190, 138, 46), 0.01)
            for k in range(6):
                side, rise = (-1, 1)[k % 2], 0.018 * size * (k // 2)
                at = (x + lean + side * 0.009 * size, y - rise)
                pen.ellipse(*at, 0.008 * size, 0.015 * size, (250, 216, 116), angle=side * 0.5)


def autumn(image: Image.Image, rng: random.Random) -> None:
    """A tree in autumn colours; leaves on the ground."""
    horizon = 0.6
    vertical_gradient(image, 0.0, horizon, (222, 226, 218), (246, 234, 204))
    pen = _ground(image, horizon, (192, 144, 84))
    x = rng.choice((rng.uniform(0.14, 0.26), rng.uniform(0.74, 0.86)))
    pen.line([(x, horizon + 0.14), (x, 0.24)], (98, 64, 42), 0.085)
    for i in range(14):
        angle, reach = i * 2.4, 0.28 * math.sqrt((i + 0.5) / 14)
        colour = jitter(rng.choice(LEAVES), rng, 8)
        pen.dot(x + reach * math.cos(angle), 0.22 + 0.72 * reach * math.sin(angle), 0.085, colour)
    for i in range(14):
        leaf = rng.choice(LEAVES)
        y = 0.66 + 0.3 * (i // 7) + rng.uniform(-0.05, 0.05)
        pen.ellipse((i % 7 + rng.random()) / 7, y, 0.034, 0.02, leaf, angle=rng.uniform(0.0, 3.0))


def eiffel_tower(image: Image.Image, rng: random.Random) -> None:
    """The tower over a lawn."""
    horizon = 0.64
    _sky(image, horizon, rng)
    pen = _ground(image, horizon, jitter((130, 180, 106), rng, 8))
    x, iron, sky = rng.choice((0.24, 0.76)) + rng.uniform(-0.06, 0.06), (112, 90, 78), (196, 224, 246)
    outline = [(-0.22, 0.68), (-0.11, 0.38), (-0.03, 0.04), (0.03, 0.04), (0.11, 0.38), (0.22, 0.68)]
    pen.polygon([(x + px, y) for px, y in outline], iron)
    pen.ellipse(x, 0.68, 0.12, 0.17, mix(sky, GRASS, 0.2), start=math.pi, end=2 * math.pi)
    pen.polygon([(x - 0.055, 0.4), (x + 0.055, 0.4), (x, 0.26)], sky)
    pen.box(x - 0.15, 0.4, x + 0.15, 0.45, shade(iron, 0.7))
    pen.box(x - 0.075, 0.21, x + 0.075, 0.245, shade(iron, 0.7))
    pen.line([(x, 0.06), (x, -0.02)], iron, 0.02)


def water(image: Image.Image, rng: random.Random) -> None:
    """Open blue water with ripples."""
    _sky(image, 0.3, rng)
    vertical_gradient(image, 0.3, 1.0, (72, 154, 214), (26, 92, 172))
    _waves(Pen(image), rng, (172, 218, 244))


def ocean_of_milk(image: Image.Image, rng: random.Random) -> None:
    """A white, creamy sea under a warm sky."""
    vertical_gradient(image, 0.0, 0.3, (236, 190, 170), (250, 224, 196))
    vertical_gradient(image, 0.3, 1.0, (244, 242, 232), (252, 250, 244))
    _waves(Pen(image), rng, (218, 210, 196))


def _waves(pen: Pen, rng: random.Random, colour: RGB) -> None:
    for i in range(12):
        x, y = (i % 3 + rng.random()) / 3 - 0.1, 0.36 + 0.16 * (i // 3) + rng.uniform(-0.03, 0.03)
        pen.line([(x, y), (x + 0.06, y - 0.02), (x + 0.12, y), (x + 0.18, y - 0.02)], colour, 0.018)


def sunflowers(image: Image.Image, rng: random.Random) -> None:
    """Green grass and a ring of sunflowers."""
    _sky(image, 0.36, rng)
    pen = _ground(image, 0.35, jitter((98, 174, 72), rng, 8))
    left = ((0.1, 0.34), (0.32, 0.26), (0.06, 0.66), (0.16, 0.9))
    for x, y in (*left, *((1.0 - x, y) for x, y in left)):
        x, y = x + rng.uniform(-0.04, 0.04), y + rng.uniform(-0.03, 0.03)
        pen.line([(x, y), (x, y + 0.16)], (48, 122, 46), 0.02)
        for k in range(8):
            angle = k * math.pi / 4
            petal = (x + 0.058 * math.cos(angle), y + 0.058 * math.sin(angle))
            pen.ellipse(*petal, 0.036, 0.024, (250, 204, 40), angle=angle)
        pen.dot(x, y, 0.042, (112, 70, 30))


def dirt_road(image: Image.Image, rng: random.Random) -> None:
    """A brown track between green fields."""
    horizon = rng.uniform(0.42, 0.48)
    _sky(image, horizon, rng)
    pen = _ground(image, horizon, jitter((132, 170, 84), rng, 8))
    x, brown = rng.uniform(0.42, 0.58), (166, 122, 78)
    pen.polygon([(x - 0.07, horizon), (x + 0.07, horizon), (1.02, 1.0), (-0.02, 1.0)], brown, (118, 84, 52))
    for side in (-1, 1):
        far, near = [x + side * reach for reach in (0.03, 0.05)], [0.5 + side * reach for reach in (0.36, 0.22)]
        rut = [(far[0], horizon), (far[1], horizon), (near[0], 1.0), (near[1], 1.0)]
        pen.polygon(rut, shade(brown, 0.82))
    for i in range(10):
        pen.ellipse(0.14 + 0.08 * i, 0.82 + 0.16 * rng.random(), 0.024, 0.014, (126, 104, 84))


def crowded_sidewalk(image: Image.Image, rng: random.Random) -> None:
    """Grey slabs, shop fronts and a row of passers-by."""
    vertical_gradient(image, 0.0, 0.58, (206, 196, 184), (190, 180, 170))
    pen = Pen(image)
    for i, awning in enumerate(((196, 62, 58), (58, 122, 92), (222, 166, 58))):
        x = 0.34 * i
        pen.box(x, 0.12, x + 0.33, 0.58, (84, 96, 116), (60, 56, 60))
        pen.polygon([(x, 0.08), (x + 0.33, 0.08), (x + 0.35, 0.2), (x - 0.02, 0.2)], awning)
    vertical_gradient(image, 0.58, 1.0, (168, 168, 172), (190, 190, 192))
    for k in range(-4, 5):
        pen.line([(0.5 + 0.16 * k, 0.58), (0.5 + 0.38 * k, 1.0)], (140, 140, 146), 0.012)
    for y in (0.68, 0.84):
        pen.line([(0.0, y), (1.0, y)], (140, 140, 146), 0.012)
    for i in range(6):
        x, top = (i + 0.5) / 6 + rng.uniform(-0.03, 0.03), rng.uniform(0.22, 0.28)
        coat = rng.choice(CLOTHES)
        pen.box(x - 0.05, top + 0.26, x + 0.05, 0.66, (56, 56, 68))
        pen.box(x - 0.075, top + 0.07, x + 0.075, top + 0.32, coat, shade(coat, 0.6), radius=0.04)
        pen.dot(x, top, 0.062, rng.choice(SKINS), (80, 56, 44))


def forest(image: Image.Image, rng: random.Random) -> None:
    """Tall trunks and a green floor; the purple rug lies here."""
    vertical_gradient(image, 0.0, 0.6, (112, 164, 104), (164, 196, 132))
    pen = _ground(image, 0.6, (92, 134, 66))
    for i in range(5):
        x, width = (i + 0.5) / 5 + rng.uniform(-0.05, 0.05), rng.uniform(0.05, 0.07)
        pen.box(x - width / 2, 0.0, x + width / 2, 0.62 + 0.03 * (i % 2), jitter((106, 78, 54), rng, 8))
    for i in range(7):
        pen.ellipse((i + rng.random()) / 7, rng.uniform(0.02, 0.1), 0.13, 0.09, jitter((52, 118, 58), rng, 10))
