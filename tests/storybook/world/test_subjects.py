"""The held-out subjects: the same files everywhere, recognisable, and unlike anything in pre-training."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dbexp.core.errors import ConfigError
from dbexp.sample import prompts
from dbexp.storybook.pretrain.corpus import CHARACTERS
from dbexp.storybook.world.identity import CLASS_NOUNS, HELD_OUT_MARKINGS, SEEN_MARKINGS, SHAPES
from dbexp.storybook.world.subjects import SUBJECTS, draw_subject, oracle, oracle_pictures
from dbexp.storybook.world.world import Scene, draw

ROOT = Path(__file__).parents[3]


def digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def test_there_are_two_dogs_a_cat_and_two_objects() -> None:
    assert [subject.class_noun for subject in SUBJECTS.values()] == ["dog", "dog", "cat", "backpack", "teapot"]
    assert [subject.live for subject in SUBJECTS.values()] == [True, True, True, False, False]


@pytest.mark.parametrize("name", SUBJECTS)
def test_pictures_are_files_as_a_data_set_wants_them(name: str, tmp_path: Path) -> None:
    paths = draw_subject(name, tmp_path / "new" / name)
    assert [path.name for path in paths] == [f"{i:02d}.png" for i in range(len(paths))]
    assert 5 <= len(paths) <= 6
    for path in paths:
        with Image.open(path) as picture:
            assert (picture.mode, picture.size, picture.format) == ("RGB", (64, 64), "PNG")
    assert len({path.read_bytes() for path in paths}) == len(paths)


def test_another_process_draws_the_same_bytes(tmp_path: Path) -> None:
    here = digest(draw_subject("dog", tmp_path / "here"))
    code = (
        "import sys; from pathlib import Path; from dbexp.storybook.world.subjects import draw_subject;"
        "draw_subject('dog', Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True, env=environment)
    assert digest(sorted((tmp_path / "there").iterdir())) == here


@pytest.mark.parametrize("name", SUBJECTS)
def test_oracle_pictures_exist_for_every_prompt(name: str) -> None:
    subject = SUBJECTS[name]
    seen = set()
    for template in prompts.LIVE if subject.live else prompts.OBJECT:
        prompt = template.format_map({"token": "sks", "class": subject.class_noun})
        (picture,) = oracle_pictures(name, prompt, 1)
        seen.add(picture.tobytes())
    assert len(seen) == 25


def test_oracle_writes_k_different_pictures(tmp_path: Path) -> None:
    paths = oracle("cat", "a sks cat in the snow", 4, tmp_path)
    assert len({path.read_bytes() for path in paths}) == 4
    assert digest(paths) == digest(oracle("cat", "a sks cat in the snow", 4, tmp_path / "again"))


def test_unknown_subjects_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'unicorn'.*dog, dog2, cat, backpack, teapot"):
        draw_subject("unicorn", tmp_path)
    with pytest.raises(ConfigError, match="unicorn"):
        oracle("unicorn", "a sks dog", 1, tmp_path)


@pytest.mark.parametrize("name", SUBJECTS)
def test_subjects_wear_what_nobody_else_does(name: str) -> None:
    who = SUBJECTS[name].identity
    known = {*SEEN_MARKINGS[who.class_noun], *HELD_OUT_MARKINGS}
    assert who.markings <= known
    assert who.shape in SHAPES[who.class_noun]
    assert who.markings & set(HELD_OUT_MARKINGS)
    for other in CHARACTERS.values():
        assert other.markings.isdisjoint(HELD_OUT_MARKINGS)
        assert not (other.class_noun == who.class_noun and other.coat == who.coat)


@pytest.mark.parametrize("name", SUBJECTS)
def test_every_held_out_marking_shows(name: str) -> None:
    """Taking one marking off changes pixels, in every pose that occurs."""
    from dataclasses import replace

    who = SUBJECTS[name].identity
    for marking in sorted(who.markings & set(HELD_OUT_MARKINGS)):
        without = replace(who, markings=who.markings - {marking})
        for seed in range(6):
            with_it, bare = (np.asarray(draw(one, Scene(), random.Random(seed))) for one in (who, without))
            assert (with_it != bare).any(axis=2).sum() > 4, f"{marking} does not show"


def test_every_held_out_marking_has_a_wearer() -> None:
    worn = frozenset().union(*(subject.identity.markings for subject in SUBJECTS.values()))
    assert set(HELD_OUT_MARKINGS) <= worn
    assert {subject.class_noun for subject in SUBJECTS.values()} == set(CLASS_NOUNS)
