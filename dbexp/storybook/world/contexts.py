"""Where the subject is: the twenty contexts of the object prompts, ten of them also for animals, and a plain studio.

A context paints the background, says at which height the subject stands and, for water and milk, what covers its feet.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from dbexp.storybook.world import landscapes
from dbexp.storybook.world.pen import COLOURS, GOLD, RGB, WHITE, Pen, jitter, mix, shade, vertical_gradient

STUDIO: tuple[RGB, ...] = ((226, 218, 204), (206, 220, 226), (228, 208, 212), (214, 224, 204), (220, 220, 222))
MIRROR_FRAME = ((0.16, 0.62), (0.84, 0.62), (0.99, 0.97), (0.01, 0.97))
MIRROR_GLASS = ((0.19, 0.64), (0.81, 0.64), (0.94, 0.95), (0.06, 0.95))


@dataclass(frozen=True)
class Liquid:
    """What a floating subject lies in: the colour around it and of its ripples."""

    surface: RGB
    ripple: RGB


@dataclass(frozen=True)
class Context:
    """One place.

    Attributes:
        phrase: how captions and prompts say it; empty for the studio.
        paint: fills a square RGB image.
        ground: the height at which the subject stands, as a fraction of the picture.
        liquid: what the subject floats in, if it floats.
        mirrors: whether the ground shows the subject's reflection.
    """

    phrase: str
    paint: Callable[[Image.Image, random.Random], None]
    ground: float = 0.93
    liquid: Liquid | None = None
    mirrors: bool = False


def _studio(image: Image.Image, rng: random.Random) -> None:
    colour = jitter(rng.choice(STUDIO), rng, 8)
    vertical_gradient(image, 0.0, 0.68, colour, shade(colour, 0.95))
    vertical_gradient(image, 0.68, 1.0, shade(colour, 0.84), shade(colour, 0.9))


def _pink_fabric(image: Image.Image, rng: random.Random) -> None:
    pink = jitter((240, 148, 186), rng, 8)
    vertical_gradient(image, 0.0, 1.0, pink, shade(pink, 0.94))
    pen = Pen(image)
    for i in range(5):
        x, bend = (i + rng.uniform(0.1, 0.9)) / 5, rng.uniform(-0.14, 0.14)
        fold = shade(pink, rng.choice((0.86, 0.9, 1.06)))
        pen.line([(x, 0.0), (x + bend, 0.5), (x + bend / 2, 1.0)], fold, rng.uniform(0.035, 0.07))


def _floorboards(image: Image.Image, top: float, rng: random.Random) -> Pen:
    """A wall with a skirting board, planks from `top` down."""
    vertical_gradient(image, 0.0, top, (224, 216, 202), (210, 202, 188))
    pen = Pen(image)
    centre = rng.uniform(0.4, 0.6)
    for i in range(-8, 8):
        far, near = centre + i * 0.13, centre + i * 0.32
        plank = jitter((180, 122, 70), rng, 10)
        pen.polygon([(far, top), (far + 0.13, top), (near + 0.32, 1.0), (near, 1.0)], plank, (128, 82, 46))
    pen.box(0.0, top - 0.04, 1.0, top, (242, 238, 230))
    return pen


def _wooden_floor(image: Image.Image, rng: random.Random) -> None:
    _floorboards(image, rng.uniform(0.42, 0.48), rng)


def _rug(pen: Pen, colour: RGB, border: RGB) -> None:
    pen.ellipse(0.5, 0.87, 0.48, 0.13, border, shade(border, 0.7))
    pen.ellipse(0.5, 0.87, 0.42, 0.1, colour)


def _purple_rug_in_a_forest(image: Image.Image, rng: random.Random) -> None:
    landscapes.forest(image, rng)
    _rug(Pen(image), COLOURS["purple"], mix(COLOURS["purple"], WHITE, 0.35))


def _white_rug(image: Image.Image, rng: random.Random) -> None:
    wall = jitter((150, 182, 186), rng, 8)
    vertical_gradient(image, 0.0, 0.6, wall, shade(wall, 0.94))
    vertical_gradient(image, 0.6, 1.0, (134, 92, 62), (154, 106, 72))
    pen = Pen(image)
    pen.box(0.0, 0.57, 1.0, 0.61, (236, 236, 232))
    _rug(pen, WHITE, (226, 224, 218))


def _mirror(image: Image.Image, rng: random.Random) -> None:
    wall = jitter((198, 180, 204), rng, 8)
    vertical_gradient(image, 0.0, 0.5, wall, shade(wall, 0.94))
    vertical_gradient(image, 0.5, 1.0, (118, 92, 108), (136, 108, 122))
    pen = Pen(image)
    pen.polygon(MIRROR_FRAME, GOLD, (150, 116, 30))
    pen.polygon(MIRROR_GLASS, (196, 220, 232))
    for x in (0.26, 0.7):
        pen.polygon([(x, 0.64), (x + 0.06, 0.64), (x - 0.02, 0.95), (x - 0.1, 0.95)], (224, 240, 246))


CONTEXTS: dict[str, Context] = {
    "jungle": Context("in the jungle", landscapes.jungle),
    "snow": Context("in the snow", landscapes.snow),
    "beach": Context("on the beach", landscapes.beach),
    "cobblestone": Context("on a cobblestone street", landscapes.cobblestone),
    "pink_fabric": Context("on top of pink fabric", _pink_fabric),
    "wooden_floor": Context("on top of a wooden floor", _wooden_floor),
    "city": Context("with a city in the background", landscapes.city),
    "mountain": Context("with a mountain in the background", landscapes.mountain),
    "blue_house": Context("with a blue house in the background", landscapes.blue_house),
    "purple_rug": Context("on top of a purple rug in a forest", _purple_rug_in_a_forest, ground=0.92),
    "wheat_field": Context("with a wheat field in the background", landscapes.wheat_field),
    "autumn": Context("with a tree and autumn leaves in the background", landscapes.autumn),
    "eiffel_tower": Context("with the Eiffel Tower in the background", landscapes.eiffel_tower),
    "water": Context(
        "floating on top of water", landscapes.water, ground=0.88, liquid=Liquid((58, 138, 204), (190, 228, 248))
    ),
    "milk": Context(
        "floating in an ocean of milk",
        landscapes.ocean_of_milk,
        ground=0.88,
        liquid=Liquid((248, 246, 238), (214, 204, 190)),
    ),
    "sunflowers": Context("on top of green grass with sunflowers around it", landscapes.sunflowers),
    "mirror": Context("on top of a mirror", _mirror, ground=0.8, mirrors=True),
    "sidewalk": Context("on top of the sidewalk in a crowded street", landscapes.crowded_sidewalk),
    "dirt_road": Context("on top of a dirt road", landscapes.dirt_road),
    "white_rug": Context("on top of a white rug", _white_rug, ground=0.92),
    "plain": Context("", _studio),
}
"""In the order of the paper's object list; the studio, which no caption mentions, last."""

LIVE_CONTEXTS = tuple(CONTEXTS)[:10]
OBJECT_CONTEXTS = tuple(CONTEXTS)[:20]
