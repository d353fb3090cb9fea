"""What pre-training reads: names, captions, and a gamut that holds every hue."""

from __future__ import annotations

import colorsys
import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from dbexp.storybook.pretrain.corpus import CHARACTERS, NAME_COUNT, NAMES, broad_picture, example, named_character
from dbexp.storybook.pretrain.stream import Stream, ahead, draw_broad, draw_captioned
from dbexp.storybook.pretrain.tokenizer import RARE_TOKEN
from dbexp.storybook.world.identity import CLASS_NOUNS
from dbexp.storybook.world.world import scene_of


def test_names_are_distinct_and_bound_to_fixed_characters() -> None:
    assert len(set(NAMES)) == NAME_COUNT
    assert RARE_TOKEN not in NAMES
    assert all(named_character(name) == CHARACTERS[name] for name in NAMES[:20])
    assert len(set(CHARACTERS.values())) == NAME_COUNT
    assert {who.class_noun for who in CHARACTERS.values()} == set(CLASS_NOUNS)


def test_captions_name_the_class_and_a_scene_that_is_shown() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        chosen = example(rng)
        words = chosen.caption.split()
        assert chosen.identity.class_noun in words
        assert RARE_TOKEN not in words
        told = scene_of(chosen.caption)
        assert told.outfit == chosen.scene.outfit
        assert told.property in (chosen.scene.property, chosen.identity.colour)  # "a red teapot" may just be one
        assert chosen.scene.property in (told.property, None)
        assert told.context in ("plain", chosen.scene.context)
        for word in set(words) & set(NAMES):
            assert CHARACTERS[word] == chosen.identity


def test_names_often_stand_beside_a_colour_that_is_not_theirs() -> None:
    """What "a purple sks dog" asks of a fine-tuned name is seen under hundreds of names in a million pictures."""
    rng = random.Random(2)
    captions = [example(rng).caption.split() for _ in range(4000)]
    named = [words for words in captions if set(words) & set(NAMES)]
    coloured = [words for words in named if words[-3] in ("red", "purple") and words[-2] in NAMES]
    assert len(named) / len(captions) > 0.35
    assert len(coloured) / len(named) > 0.08


def test_examples_do_not_depend_on_how_they_are_batched() -> None:
    whole, captions = draw_captioned(3, 10, 4)
    parts = [draw_captioned(3, start, 2) for start in (10, 12)]
    assert np.array_equal(whole, np.concatenate([pictures for pictures, _ in parts]))
    assert captions == parts[0][1] + parts[1][1]
    assert not np.array_equal(draw_broad(0, 0, 2), draw_broad(1, 0, 2))


def test_the_gamut_is_broader_than_the_world() -> None:
    rng = random.Random(1)
    hues = set()
    for _ in range(60):
        for red, green, blue in np.asarray(broad_picture(rng).resize((8, 8))).reshape(-1, 3) / 255:
            hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
            if saturation > 0.4:
                hues.add(int(hue * 24))
    assert hues == set(range(24))


def test_results_come_in_order_with_and_without_workers() -> None:
    calls = [partial(draw_broad, 0, start, 1) for start in range(5)]
    alone = list(ahead(calls, None, 2))
    with ThreadPoolExecutor(2) as executor:
        together = list(ahead(iter(calls), executor, 2))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_a_stream_goes_on_where_it_is_told_to() -> None:
    drawn: list[int] = []

    def chunk(seed: int, start: int, count: int) -> list[int]:
        drawn.append(start)
        return [seed * 1000 + i for i in range(start, start + count)]

    stream = Stream(chunk, 1, None)
    assert stream.take(0, 2) + stream.take(2, 2) == [1000, 1001, 1002, 1003]
    assert stream.take(10, 2) == [1010, 1011]
    assert drawn == [0, 2, 10]
    with ThreadPoolExecutor(2) as executor:
        assert Stream(chunk, 1, executor, depth=3).take(6, 2) == [1006, 1007]
