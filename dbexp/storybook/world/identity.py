"""Who is drawn: the characters of the world, as plain data."""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, replace

from dbexp.storybook.world.pen import COLOURS, FURS, RGB, jitter, mix

LIVE_CLASSES = ("dog", "cat")
OBJECT_CLASSES = ("backpack", "teapot")
CLASS_NOUNS = LIVE_CLASSES + OBJECT_CLASSES

SHAPES: dict[str, tuple[str, ...]] = {
    "dog": ("floppy", "pointed", "round"),
    "cat": ("pointed",),
    "backpack": ("round", "tall", "square"),
    "teapot": ("round", "tall", "square"),
}
"""Ears of animals, build of objects."""

SEEN_MARKINGS: dict[str, tuple[str, ...]] = {
    "dog": ("chest", "socks", "patch", "spots", "muzzle", "ears"),
    "cat": ("chest", "socks", "patch", "stripes", "muzzle", "ears"),
    "backpack": ("band", "dots", "stripe", "pocket"),
    "teapot": ("band", "dots", "stripe", "lid"),
}
"""Markings that pre-training draws."""

HELD_OUT_MARKINGS = ("heart", "star", "diamond", "moon", "monster", "split", "cuffs", "rings")
"""Markings that only the held-out subjects wear. Nothing in pre-training may draw them."""

EYES: tuple[RGB, ...] = ((70, 160, 70), (226, 176, 40), (70, 130, 210))


@dataclass(frozen=True)
class Identity:
    """One character. The same identity looks the same in every scene and pose.

    Attributes:
        class_noun: one of `CLASS_NOUNS`.
        coat: the main colour.
        accent: the colour of most markings.
        third: the colour of the remaining details; equal to `accent` unless the character is a colourful one.
        shape: one of `SHAPES[class_noun]`.
        markings: names out of `SEEN_MARKINGS[class_noun]`, for held-out subjects also `HELD_OUT_MARKINGS`.
        width, height: proportions around 1.
        eyes: iris colour (cats).
        colour: the word that captions may use for the coat, None where no plain word fits.
    """

    class_noun: str
    coat: RGB
    accent: RGB
    third: RGB
    shape: str
    markings: frozenset[str]
    width: float = 1.0
    height: float = 1.0
    eyes: RGB = EYES[0]
    colour: str | None = None

    @property
    def live(self) -> bool:
        """Whether the live-subject prompts apply."""
        return self.class_noun in LIVE_CLASSES

    def has(self, marking: str) -> bool:
        """Whether the character wears this marking."""
        return marking in self.markings


def recoloured(identity: Identity, colour: str) -> Identity:
    """The same character in one of `COLOURS`: the coat takes the colour, the markings lean towards it."""
    target = COLOURS[colour]
    return replace(
        identity,
        coat=mix(identity.coat, target, 0.92),
        accent=mix(identity.accent, target, 0.55),
        third=mix(identity.third, target, 0.55),
        colour=colour,
    )


def identity(rng: random.Random, class_noun: str) -> Identity:
    """Sample a character as the captions know them: natural coats for animals, plain colours for objects."""
    palette = FURS if class_noun in LIVE_CLASSES else COLOURS
    word = rng.choice(list(palette))
    other = rng.choice([name for name in palette if name != word])
    accent = jitter(palette[other], rng)
    return Identity(
        class_noun=class_noun,
        coat=jitter(palette[word], rng),
        accent=accent,
        third=accent,
        colour=word,
        **_build(rng, class_noun),  # type: ignore[arg-type]  # a dict of mixed values
    )


def character(rng: random.Random, class_noun: str) -> Identity:
    """Sample a colourful character out of the whole gamut: what an invented name may stand for."""
    return Identity(
        class_noun=class_noun,
        coat=any_colour(rng),
        accent=any_colour(rng),
        third=any_colour(rng),
        **_build(rng, class_noun),  # type: ignore[arg-type]  # a dict of mixed values
    )


def any_colour(rng: random.Random) -> RGB:
    """Any hue, from pale to deep; uniform in hue, not in RGB."""
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.95), rng.uniform(0.25, 1.0))
    return round(red * 255), round(green * 255), round(blue * 255)


def _build(rng: random.Random, class_noun: str) -> dict[str, object]:
    """The shape, proportions and markings of a character."""
    markings = SEEN_MARKINGS[class_noun]
    if class_noun in LIVE_CLASSES:
        worn = frozenset(name for name in markings if rng.random() < 0.4)
    else:
        worn = frozenset(rng.sample(markings, rng.choice((0, 1, 1, 2))))
    return {
        "shape": rng.choice(SHAPES[class_noun]),
        "markings": worn,
        "width": rng.uniform(0.9, 1.1),
        "height": rng.uniform(0.92, 1.08),
        "eyes": rng.choice(EYES),
    }
