"""Draw a character in a scene, and read scenes out of the paper's prompts. Pure and seeded.

>>> import random
>>> from dbexp.storybook.world.identity import identity
>>> rng = random.Random(0)
>>> draw(identity(rng, "dog"), scene_of("a sks dog wearing a santa hat"), rng).size
(64, 64)
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageOps

from dbexp.core.errors import ConfigError
from dbexp.storybook.world.animals import PLAIN, POSES, draw_animal, draw_cube_animal
from dbexp.storybook.world.contexts import CONTEXTS, LIVE_CONTEXTS, MIRROR_GLASS, OBJECT_CONTEXTS, Liquid
from dbexp.storybook.world.identity import CLASS_NOUNS, LIVE_CLASSES, Identity, identity, recoloured
from dbexp.storybook.world.objects import draw_object
from dbexp.storybook.world.outfits import OUTFITS
from dbexp.storybook.world.pen import RGB, SUPERSAMPLING, Pen, shade

VERSION = 2
"""Raise it whenever a drawing changes: pictures of one version are byte-identical everywhere."""

PICTURE_SIZE = 64
SOAK: RGB = (30, 62, 96)
"""What the colours of a wet subject turn to."""
PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")

_SUBJECT = re.compile(
    r"(?:a photo of (?:an? )?|an? )"
    r"(?:(?P<property>red|purple|shiny|wet|cube shaped) )?"
    r"(?!.*\b(?:in|on|with|wearing|floating)\b)[\w<>-]+(?: [\w<>-]+){0,3}"
)


@dataclass(frozen=True)
class Scene:
    """What surrounds a character: keys of `CONTEXTS` and `OUTFITS`, one of `PROPERTIES`."""

    context: str = "plain"
    outfit: str | None = None
    property: str | None = None


def scene_of(prompt: str) -> Scene:
    """Read the scene of a prompt such as "a sks dog in the snow"; token and class words are not looked at.

    Raises:
        ConfigError: the prompt says something that the world cannot draw.
    """
    rest = prompt.strip().rstrip(".")
    context, rest = _split_off(rest, {key: place.phrase for key, place in CONTEXTS.items() if place.phrase})
    outfit, rest = _split_off(rest, {key: worn.phrase for key, worn in OUTFITS.items()})
    subject = _SUBJECT.fullmatch(rest)
    if subject is None:
        raise ConfigError(
            f"prompt={prompt!r}: the storybook world draws only the contexts, outfits and properties of DreamBooth's "
            f"prompt lists (for example 'a sks dog in the snow')"
        )
    return Scene(context or "plain", outfit, subject["property"])


def _split_off(text: str, phrases: dict[str, str]) -> tuple[str | None, str]:
    """The key of the phrase that the text ends with, if any, and the text before it."""
    for key, phrase in phrases.items():
        if text.endswith(" " + phrase):
            return key, text.removesuffix(phrase).rstrip()
    return None, text


def caption(subject: str, scene: Scene) -> str:
    """Say a scene the way the prompt lists do. `subject` is the noun with what stands before it: "sks dog"."""
    words = f"{scene.property} {subject}" if scene.property else subject
    text = f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
    for phrase in (OUTFITS[scene.outfit].phrase if scene.outfit else "", CONTEXTS[scene.context].phrase):
        if phrase:
            text += f" {phrase}"
    return text


def draw(who: Identity, scene: Scene, rng: random.Random, size: int = PICTURE_SIZE) -> Image.Image:
    """Draw one picture.

    Args:
        who: the character.
        scene: place, outfit and property. Outfits belong to animals.
        rng: chooses pose, place in the picture, size and the details of the background.
        size: width and height in pixels.

    Returns:
        An RGB image of size x size.
    """
    return draw_with_mask(who, scene, rng, size)[0]


def draw_with_mask(
    who: Identity, scene: Scene, rng: random.Random, size: int = PICTURE_SIZE
) -> tuple[Image.Image, Image.Image]:
    """Like `draw`, and the subject's mask beside it: an "L" image, 255 inside the subject."""
    context, outfit = CONTEXTS[scene.context], OUTFITS[scene.outfit] if scene.outfit else PLAIN
    if scene.outfit and not who.live:
        raise ConfigError(f"outfit={scene.outfit!r}: outfits are for dogs and cats, not for a {who.class_noun}")
    canvas = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    context.paint(canvas, rng)

    scale = (rng.uniform(0.38, 0.4) if who.live else rng.uniform(0.35, 0.37)) - 0.07 * outfit.headroom
    if context.mirrors:
        scale *= 0.88
    # Subjects stand near the middle and look one way: a small model then draws faces and markings sharply.
    x, y = 0.5 + rng.uniform(-0.03, 0.03), context.ground + rng.uniform(-0.01, 0.01)
    pose, tilt = rng.choice(POSES), rng.uniform(-0.02, 0.02)

    layer = Image.new("RGBA", canvas.size)
    pen = Pen(layer, x, y - scale, scale, tilt=tilt)
    painted = recoloured(who, scene.property) if scene.property in ("red", "purple") else who
    if scene.property == "cube shaped":
        draw_cube_animal(pen, painted) if who.live else draw_object(pen, painted, cube=True)
    elif who.live:
        draw_animal(pen, painted, pose, outfit)
    else:
        draw_object(pen, painted)
    if scene.property == "shiny":
        _polish(layer, x, y, scale)
    elif scene.property == "wet":
        _soak(layer)

    floor = Pen(canvas, x, y - scale, scale)
    if context.mirrors:
        _reflect(canvas, layer, y)
    elif context.liquid is None:
        _shadow(floor, canvas, x, y, wet=scene.property == "wet")
    canvas.paste(layer, (0, 0), layer)
    if scene.property == "shiny":
        _sparkle(floor)
    elif scene.property == "wet":
        _drip(floor)
    if context.liquid is not None:
        _submerge(floor, context.liquid)
    mask = layer.getchannel("A").resize((size, size), Image.Resampling.BOX)
    return canvas.resize((size, size), Image.Resampling.BOX), mask


def _shadow(floor: Pen, canvas: Image.Image, x: float, y: float, *, wet: bool) -> None:
    """A contact shadow, or the puddle under a wet subject."""
    last = canvas.width - 1
    ground = canvas.getpixel((min(last, int(x * canvas.width)), min(last, int(y * canvas.width))))
    assert isinstance(ground, tuple)
    colour: RGB = (ground[0], ground[1], ground[2])
    if wet:
        floor.ellipse(0.0, 0.98, 1.1, 0.14, (96, 166, 224), (206, 232, 250))
    else:
        floor.ellipse(0.0, 0.98, 0.9, 0.1, shade(colour, 0.76))


def _reflect(canvas: Image.Image, layer: Image.Image, y: float) -> None:
    """Blend the subject, turned upside down at its feet, into the mirror."""
    feet = round(y * canvas.height)
    upright = layer.crop((0, 2 * feet - canvas.height, canvas.width, feet))
    flipped = ImageOps.flip(upright)
    faint = flipped.getchannel("A").point(lambda value: round(value * 0.55))
    glass = Image.new("L", canvas.size)
    corners = [(px * canvas.width, py * canvas.height) for px, py in MIRROR_GLASS]
    ImageDraw.Draw(glass).polygon(corners, fill=255)
    box = (0, feet, canvas.width, canvas.height)
    canvas.paste(flipped, box, ImageChops.multiply(faint, glass.crop(box)))


def _polish(layer: Image.Image, x: float, y: float, scale: float) -> None:
    """Bright diagonal gleams over the subject, clipped to it."""
    gloss = Image.new("RGB", layer.size, (255, 255, 255))
    strength = Image.new("L", layer.size)
    pen = ImageDraw.Draw(strength)
    width = layer.width
    for start, breadth, value in ((-1.12, 0.2, 110), (-0.8, 0.1, 170), (0.3, 0.24, 130)):
        left = (x + start * scale) * width
        top, bottom, lean = (y - 2.2 * scale) * width, y * width, 0.9 * scale * width
        right = left + breadth * scale * width
        pen.polygon([(left + lean, top), (right + lean, top), (right, bottom), (left, bottom)], fill=value)
    alpha = layer.getchannel("A")
    layer.paste(gloss, (0, 0), ImageChops.multiply(strength, alpha))
    layer.putalpha(alpha)


def _sparkle(pen: Pen) -> None:
    """Four-pointed glints around the subject."""
    for x, y, radius in ((-0.78, -0.72, 0.26), (0.84, -0.36, 0.2), (0.72, 0.62, 0.24), (-0.8, 0.24, 0.17)):
        pen.star(x, y, radius * 1.25, (250, 222, 110), tips=4, waist=0.24)
        pen.star(x, y, radius, (255, 255, 246), tips=4, waist=0.24)


def _soak(layer: Image.Image) -> None:
    """Darken and cool the subject's colours."""
    alpha = layer.getchannel("A")
    wet = Image.blend(layer.convert("RGB"), Image.new("RGB", layer.size, SOAK), 0.24)
    layer.paste(wet, (0, 0))
    layer.putalpha(alpha)


def _drip(pen: Pen) -> None:
    """Large drops running off the subject."""
    light, edge = (150, 212, 250), (44, 112, 186)
    for x, y in ((-0.72, -0.5), (0.74, -0.62), (-0.86, 0.12), (0.84, 0.14), (-0.3, 0.36), (0.3, 0.54), (0.02, -0.98)):
        pen.polygon([(x - 0.075, y), (x, y - 0.2), (x + 0.075, y)], light, edge)
        pen.ellipse(x, y + 0.02, 0.085, 0.09, light, edge)


def _submerge(pen: Pen, liquid: Liquid) -> None:
    """Cover the feet with the liquid and draw the ripple around them."""
    pen.ellipse(0.0, 0.98, 1.16, 0.16, liquid.surface)
    crest = [(-1.16 + 0.29 * i, 0.86 + (0.05 if i % 2 else 0.0)) for i in range(9)]
    pen.line(crest, liquid.ripple, 0.06)
    pen.line([(-0.8, 1.05), (-0.3, 1.09), (0.3, 1.05), (0.8, 1.09)], liquid.ripple, 0.045)


def world_sheet(columns: int = 25, size: int = PICTURE_SIZE, gap: int = 2, seed: int = 0) -> Image.Image:
    """A contact sheet: one row per class, drawn in every scene of its prompt list."""
    rows = []
    for class_noun in CLASS_NOUNS:
        rng = random.Random(f"{seed}/{class_noun}")
        rows.append([draw(identity(rng, class_noun), scene, rng, size) for scene in scenes_of_class(class_noun)])
    return contact_sheet([picture for row in rows for picture in row], columns, gap)


def scenes_of_class(class_noun: str) -> list[Scene]:
    """The 25 scenes of the prompt list that fits the class, in the paper's order."""
    live = class_noun in LIVE_CLASSES
    scenes = [Scene(context=key) for key in (LIVE_CONTEXTS if live else OBJECT_CONTEXTS)]
    if live:
        scenes += [Scene(outfit=key) for key in OUTFITS]
    return scenes + [Scene(property=name) for name in PROPERTIES]


def contact_sheet(pictures: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Lay pictures of one size out in rows on white."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, ((i % columns) * (width + gap), (i // columns) * (height + gap)))
    return sheet
