"""What pre-training sees: captioned pictures, named characters, and pictures of a gamut far beyond the captions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image

from dbexp.storybook.world.contexts import LIVE_CONTEXTS, OBJECT_CONTEXTS
from dbexp.storybook.world.identity import CLASS_NOUNS, Identity, any_colour, character, identity
from dbexp.storybook.world.outfits import OUTFITS
from dbexp.storybook.world.pen import SUPERSAMPLING, Pen, vertical_gradient
from dbexp.storybook.world.world import PICTURE_SIZE, PROPERTIES, Scene, caption, draw

NAME_COUNT = 120
NAMED_SHARE = 0.4
"""Share of pictures that show a named character under its name: what a fine-tuned name will be learnt like."""
PROPERTY_SHARE = 0.2
"""Share of pictures whose caption tells a property and nothing else."""
PROPERTY_WEIGHTS = (2, 2, 1, 1, 1)
"""Of `PROPERTIES`. Colours come more often: under a name they contradict what the name stands for ("a purple sks dog"),
which a model that hardly ever saw such a pair decides by the name."""


def _invent_names() -> tuple[str, ...]:
    """Pronounceable nonsense: two or three syllables, none of them the prompts' rare token."""
    rng = random.Random("storybook names")
    names: dict[str, None] = {}
    while len(names) < NAME_COUNT:
        syllables = (rng.choice("bdfgjklmnprtvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3))))
        names["".join(syllables) + rng.choice(("", "", "k", "n", "x"))] = None
    return tuple(names)


NAMES = _invent_names()
"""Invented names. Each stands for one fixed character, so that an unknown name is a meaningful handle."""


def named_character(name: str) -> Identity:
    """The character that a name stands for; classes take turns."""
    return character(random.Random(f"storybook character {name}"), CLASS_NOUNS[NAMES.index(name) % len(CLASS_NOUNS)])


CHARACTERS: dict[str, Identity] = {name: named_character(name) for name in NAMES}


@dataclass(frozen=True)
class Example:
    """A picture to draw and the words for it."""

    identity: Identity
    scene: Scene
    caption: str


def example(rng: random.Random) -> Example:
    """Sample a captioned example: an ordinary member of a class, or a named character."""
    if rng.random() < NAMED_SHARE:
        name = rng.choice(NAMES)
        who, words = CHARACTERS[name], f"{name} {CHARACTERS[name].class_noun}"
    else:
        who = identity(rng, rng.choice(CLASS_NOUNS))
        words = who.class_noun
    told, shown = _scenes(rng, who)
    if words == who.class_noun and shown.property not in ("red", "purple") and rng.random() < 0.3:
        words = f"{who.colour} {words}"
    return Example(who, shown, _phrased(rng, caption(words, told)))


def _phrased(rng: random.Random, text: str) -> str:
    """A caption as the prompt lists put it, or as training prompts do: "a photo of (a) dog in the snow"."""
    kind = rng.random()
    if kind < 0.7:
        return text
    return f"a photo of {text}" if kind < 0.85 else f"a photo of {text.partition(' ')[2]}"


def _scenes(rng: random.Random, who: Identity) -> tuple[Scene, Scene]:
    """What the caption tells and what the picture shows: an untold place is mostly the studio."""
    listed = LIVE_CONTEXTS if who.live and rng.random() < 0.8 else OBJECT_CONTEXTS
    place = rng.choice(listed)
    untold_place = rng.choice(listed) if rng.random() < 0.35 else "plain"
    outfit = rng.choice(list(OUTFITS)) if who.live else None
    kind = rng.random()
    if kind < 0.12:
        return Scene(), Scene(untold_place)
    if kind < 0.12 + PROPERTY_SHARE:
        (trait,) = rng.choices(PROPERTIES, PROPERTY_WEIGHTS)
        return Scene(property=trait), Scene(untold_place, property=trait)
    if outfit and kind < 0.56:
        return Scene(outfit=outfit), Scene(untold_place, outfit)
    if outfit and kind < 0.64:
        return Scene(place, outfit), Scene(place, outfit)
    return Scene(place), Scene(place)


def random_scene(rng: random.Random, who: Identity) -> Scene:
    """Any scene that fits the character."""
    return _scenes(rng, who)[1]


def broad_picture(rng: random.Random) -> Image.Image:
    """One picture of the gamut: the world as captioned, the world in wrong colours, or abstract shapes."""
    kind = rng.random()
    if kind < 0.45:
        chosen = example(rng)
        return draw(chosen.identity, chosen.scene, rng)
    if kind < 0.75:
        who = character(rng, rng.choice(CLASS_NOUNS))
        picture = draw(who, random_scene(rng, who), rng)
        return recoloured_picture(picture, rng) if rng.random() < 0.5 else picture
    return abstract_picture(rng)


def recoloured_picture(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Permute, and sometimes invert, the colour channels."""
    bands = list(picture.split())
    rng.shuffle(bands)
    return Image.merge("RGB", [band.point(lambda v: 255 - v) if rng.random() < 0.3 else band for band in bands])


def abstract_picture(rng: random.Random, size: int = PICTURE_SIZE) -> Image.Image:
    """Random polygons, ellipses, blocks and lines in any colours on a gradient."""
    canvas = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    vertical_gradient(canvas, 0.0, 1.0, any_colour(rng), any_colour(rng))
    for _ in range(rng.randint(4, 14)):
        reach = rng.choice((0.04, 0.08, 0.16, 0.3))
        pen = Pen(canvas, rng.random(), rng.random(), reach, tilt=rng.uniform(0.0, 6.28))
        colour = any_colour(rng)
        edge = any_colour(rng) if rng.random() < 0.4 else None
        shape = rng.randrange(4)
        if shape == 0:
            pen.ellipse(0.0, 0.0, 1.0, rng.uniform(0.3, 1.0), colour, edge)
        elif shape == 1:
            pen.box(-1.0, -rng.uniform(0.3, 1.0), 1.0, 0.5, colour, edge)
        elif shape == 2:
            corners = [(rng.uniform(-1, 1), rng.uniform(-1, 1)) for _ in range(rng.randint(3, 6))]
            pen.polygon(corners, colour, edge)
        else:
            pen.line([(-1.0, 0.0), (0.0, rng.uniform(-0.6, 0.6)), (1.0, 0.0)], colour, rng.uniform(0.06, 0.3))
    return canvas.resize((size, size), Image.Resampling.BOX)
