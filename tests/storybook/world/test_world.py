"""The world draws every prompt of both lists, each different from the others, the same way every time."""

from __future__ import annotations

import colorsys
import random

import numpy as np
import pytest
from PIL import Image

from dbexp.core.errors import ConfigError
from dbexp.sample import prompts
from dbexp.storybook.world.contexts import CONTEXTS, LIVE_CONTEXTS, OBJECT_CONTEXTS
from dbexp.storybook.world.identity import CLASS_NOUNS, HELD_OUT_MARKINGS, LIVE_CLASSES, Identity, character, identity
from dbexp.storybook.world.outfits import OUTFITS
from dbexp.storybook.world.world import (
    PROPERTIES,
    SOAK,
    Scene,
    caption,
    draw,
    draw_with_mask,
    scene_of,
    scenes_of_class,
    world_sheet,
)


def filled(template: str, class_noun: str) -> str:
    return template.format_map({"token": "sks", "class": class_noun})


def list_of(class_noun: str) -> tuple[str, ...]:
    return prompts.LIVE if class_noun in LIVE_CLASSES else prompts.OBJECT


def anyone(class_noun: str, seed: int = 0) -> Identity:
    return identity(random.Random(seed), class_noun)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.float64)


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_prompt_lists_are_drawn_completely(class_noun: str) -> None:
    scenes = [scene_of(filled(template, class_noun)) for template in list_of(class_noun)]
    assert scenes == scenes_of_class(class_noun)
    assert len(set(scenes)) == 25

    pictures = [pixels(draw(anyone(class_noun), scene, random.Random(7))) for scene in scenes]
    assert all(picture.shape == (64, 64, 3) for picture in pictures)
    for i, first in enumerate(pictures):
        assert first.std() > 15, f"{scenes[i]} is nearly blank"
        for j in range(i):
            difference = np.abs(first - pictures[j]).mean()
            assert difference > 1.0, f"{scenes[i]} and {scenes[j]} look the same"


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_a_caption_says_what_its_scene_is(class_noun: str) -> None:
    for template, scene in zip(list_of(class_noun), scenes_of_class(class_noun), strict=True):
        assert caption(f"sks {class_noun}", scene) == filled(template, class_noun)
    both = Scene("snow", "chef")
    assert scene_of(caption("golden dog", both)) == both
    assert scene_of(f"a photo of {caption('sks dog', both)}") == both


def test_plain_prompts_are_the_studio() -> None:
    for prompt in ("a dog", "a sks dog", "a photo of a sks teapot", "a photo of sks dog", "an orange cat"):
        assert scene_of(prompt) == Scene()


@pytest.mark.parametrize(
    "prompt", ["a sks dog on the moon", "a sks dog in the", "dogs", "", "a dog wearing a blue hat"]
)
def test_what_cannot_be_drawn_is_refused(prompt: str) -> None:
    with pytest.raises(ConfigError, match="storybook world draws only"):
        scene_of(prompt)


def test_outfits_are_not_for_objects() -> None:
    with pytest.raises(ConfigError, match="not for a teapot"):
        draw(anyone("teapot"), Scene(outfit="chef"), random.Random(0))


def test_drawing_is_a_function_of_its_seed() -> None:
    who = anyone("cat")
    first, again, other = (draw(who, Scene("city"), random.Random(seed)).tobytes() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def inside(scene: Scene, class_noun: str, seed: int) -> np.ndarray:
    """Colours of the pixels that are wholly the subject's: [n, 3] in 0..1."""
    picture, mask = draw_with_mask(anyone(class_noun, seed), scene, random.Random(seed))
    inner: np.ndarray = pixels(picture)[np.asarray(mask) == 255] / 255
    return inner


def share_of_hue(colours: np.ndarray, low: float, high: float) -> float:
    """Share of pixels that have a clear colour with its hue (0..1, may wrap) between the bounds."""
    count = 0
    for red, green, blue in colours:
        hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
        hue = hue - 1 if hue > high else hue
        count += saturation > 0.25 and low <= hue <= high
    return count / len(colours)


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_colours_take_the_whole_subject(class_noun: str) -> None:
    for seed in range(4):
        red, purple = (inside(Scene(property=name), class_noun, seed) for name in ("red", "purple"))
        assert share_of_hue(red, -0.06, 0.06) > 0.6
        assert share_of_hue(purple, 0.68, 0.88) > 0.6


@pytest.mark.parametrize("class_noun", CLASS_NOUNS)
def test_shiny_gleams_and_wet_turns_to_the_colour_of_water(class_noun: str) -> None:
    for seed in range(4):
        plain, shiny, wet = (inside(Scene(property=name), class_noun, seed) for name in (None, "shiny", "wet"))
        assert shiny.mean() > plain.mean()
        dry_distance, wet_distance = (np.abs(colours - np.array(SOAK) / 255).mean() for colours in (plain, wet))
        assert wet_distance < dry_distance


def test_cubes_fill_their_bounding_box() -> None:
    for class_noun in ("backpack", "dog"):
        shares = []
        for name in (None, "cube shaped"):
            _, mask = draw_with_mask(anyone(class_noun), Scene(property=name), random.Random(3))
            box = mask.getbbox()
            assert box is not None
            shares.append(np.asarray(mask.crop(box)).mean() / 255)
        assert shares[1] > shares[0]


def test_floating_subjects_are_partly_covered() -> None:
    who = anyone("teapot")
    for context in ("water", "milk"):
        picture, mask = draw_with_mask(who, Scene(context), random.Random(0))
        liquid = CONTEXTS[context].liquid
        assert liquid is not None
        lowest = np.flatnonzero(np.asarray(mask).max(axis=1) > 128)[-1]
        columns = np.asarray(mask)[lowest] > 128
        near = np.abs(pixels(picture)[lowest][columns] - np.array(liquid.surface)).mean(axis=1)
        assert (near < 60).mean() > 0.5


def test_the_mirror_shows_the_subject() -> None:
    colours = []
    for coat in ((250, 30, 30), (30, 30, 250)):
        who = Identity("backpack", coat, coat, coat, "square", frozenset())
        picture, mask = draw_with_mask(who, Scene("mirror"), random.Random(5))
        below = np.flatnonzero(np.asarray(mask).max(axis=1) > 0)[-1] + 3
        columns = np.flatnonzero(np.asarray(mask).max(axis=0) > 200)
        colours.append(pixels(picture)[below, columns].mean(axis=0))
    assert colours[0][0] > colours[1][0] + 40
    assert colours[1][2] > colours[0][2] + 40


def test_lists_and_groups_have_the_papers_sizes() -> None:
    assert (len(LIVE_CONTEXTS), len(OBJECT_CONTEXTS), len(OUTFITS), len(PROPERTIES)) == (10, 20, 10, 5)


def test_sampled_characters_never_wear_held_out_markings() -> None:
    rng = random.Random(0)
    worn: set[str] = set()
    for i in range(4000):
        for sample in (identity, character):
            worn |= sample(rng, CLASS_NOUNS[i % 4]).markings
    assert worn.isdisjoint(HELD_OUT_MARKINGS)
    assert len(worn) > 10


def test_the_sheet_holds_every_scene() -> None:
    assert world_sheet(columns=25, size=16, gap=1).size == (25 * 17 - 1, 4 * 17 - 1)
