"""Pairs of pictures of one character, with captions and labels: what the metric networks learn from."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from dbexp.storybook.pretrain.corpus import random_scene
from dbexp.storybook.pretrain.stream import Pictures
from dbexp.storybook.world.contexts import CONTEXTS
from dbexp.storybook.world.identity import CLASS_NOUNS, Identity, character, identity
from dbexp.storybook.world.outfits import OUTFITS
from dbexp.storybook.world.pen import COLOURS, FURS
from dbexp.storybook.world.subjects import SUBJECTS
from dbexp.storybook.world.world import PROPERTIES, Scene, caption, draw, scenes_of_class

COLOUR_WORDS = tuple(dict.fromkeys([*COLOURS, *FURS]))
NO_COLOUR = -100
"""Label of characters that no plain colour word fits; losses ignore it."""


@dataclass(frozen=True)
class Pairs:
    """`first[i]` and `second[i]` show the same character in different scenes.

    Attributes:
        first, second: uint8 [n, 64, 64, 3].
        first_captions, second_captions: what the pictures show, completely.
        first_labels, second_labels: int64 [n, 5], class, context, outfit, property, colour; sizes in `LABEL_SIZES`.
    """

    LABEL_SIZES: ClassVar[tuple[int, ...]] = (
        len(CLASS_NOUNS),
        len(CONTEXTS),
        len(OUTFITS) + 1,
        len(PROPERTIES) + 1,
        len(COLOUR_WORDS),
    )
    first: Pictures
    second: Pictures
    first_captions: list[str]
    second_captions: list[str]
    first_labels: npt.NDArray[np.int64]
    second_labels: npt.NDArray[np.int64]

    @property
    def recognisable(self) -> npt.NDArray[np.intp]:
        """Indices of the pairs of which neither picture was painted red or purple: colours tell characters apart."""
        painted = [PROPERTIES.index(name) + 1 for name in ("red", "purple")]
        return np.flatnonzero(~np.isin(self.first_labels[:, 3], painted) & ~np.isin(self.second_labels[:, 3], painted))


def draw_pairs(seed: int, start: int, count: int) -> Pairs:
    """Pairs `start` to `start + count` of a seed; half of the characters have natural colours, half any colours."""
    sides: tuple[list[_View], list[_View]] = ([], [])
    for i in range(start, start + count):
        rng = random.Random(f"pairs {seed}/{i}")
        class_noun = rng.choice(CLASS_NOUNS)
        who = identity(rng, class_noun) if rng.random() < 0.5 else character(rng, class_noun)
        for side in sides:
            side.append(_view(who, random_scene(rng, who), rng))
    return _stack(sides)


def draw_subject_views(name: str, count: int) -> tuple[Pictures, Pictures, Pictures]:
    """A held-out subject as a metric meets it: real pictures, itself in prompted scenes, and strangers in them.

    Args:
        name: a key of `SUBJECTS`.
        count: pictures of each kind.

    Returns:
        Three arrays uint8 [count, 64, 64, 3].
    """
    subject = SUBJECTS[name]
    prompted = scenes_of_class(subject.class_noun)[:20]  # all but the properties, which change the subject
    views: tuple[list[Pictures], list[Pictures], list[Pictures]] = ([], [], [])
    for i in range(count):
        rng = random.Random(f"subject views {name}/{i}")
        scene = prompted[i % len(prompted)]
        stranger = identity(rng, subject.class_noun)
        views[0].append(np.asarray(draw(subject.identity, subject.scenes[i % len(subject.scenes)], rng)))
        views[1].append(np.asarray(draw(subject.identity, scene, rng)))
        views[2].append(np.asarray(draw(stranger, scene, rng)))
    real, oracle, strangers = (np.stack(kind) for kind in views)
    return real, oracle, strangers


_View = tuple[npt.NDArray[np.uint8], str, list[int]]


def _view(who: Identity, scene: Scene, rng: random.Random) -> _View:
    words = who.class_noun
    coloured = scene.property in ("red", "purple")
    if who.colour and not coloured and rng.random() < 0.5:
        words = f"{who.colour} {words}"
    colour = scene.property if coloured else who.colour
    labels = [
        CLASS_NOUNS.index(who.class_noun),
        list(CONTEXTS).index(scene.context),
        list(OUTFITS).index(scene.outfit) + 1 if scene.outfit else 0,
        PROPERTIES.index(scene.property) + 1 if scene.property else 0,
        COLOUR_WORDS.index(colour) if colour else NO_COLOUR,
    ]
    return np.asarray(draw(who, scene, rng)), caption(words, scene), labels


def _stack(sides: tuple[list[_View], list[_View]]) -> Pairs:
    pictures = [np.stack([view[0] for view in side]) for side in sides]
    captions = [[view[1] for view in side] for side in sides]
    labels = [np.array([view[2] for view in side], dtype=np.int64) for side in sides]
    return Pairs(*pictures, *captions, *labels)  # type: ignore[arg-type]  # three lists of two, in the order of the fields
