"""Pictures of the true subject: drawn once for a world that has it, and for nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dbexp.config.schema import DatasetConfig
from dbexp.core.store import Store
from dbexp.sample.oracle import oracle_samples
from dbexp.storybook.world.subjects import oracle_pictures

TEAPOT = DatasetConfig(name="storybook/teapot", source="storybook", token="sks", class_noun="teapot", live=False)
PROMPTS = ("a sks teapot in the snow", "a sks teapot on the beach")


def test_every_prompt_has_its_pictures_of_the_subject(tmp_path: Path) -> None:
    samples = oracle_samples(TEAPOT, PROMPTS, 2, Store(tmp_path))
    assert samples is not None and list(samples) == list(PROMPTS)
    for prompt, paths in samples.items():
        for path, expected in zip(paths, oracle_pictures("teapot", prompt, 2), strict=True):
            with Image.open(path) as picture:
                assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_they_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = oracle_samples(TEAPOT, PROMPTS, 1, Store(tmp_path))
    monkeypatch.setattr("dbexp.storybook.world.subjects.oracle", None)
    assert oracle_samples(TEAPOT, PROMPTS, 1, Store(tmp_path)) == first


def test_a_photographed_subject_has_none(tmp_path: Path) -> None:
    assert oracle_samples(replace(TEAPOT, source="folder"), PROMPTS, 1, Store(tmp_path)) is None


def test_a_prompt_outside_the_world_has_none_and_is_no_error(tmp_path: Path) -> None:
    assert oracle_samples(TEAPOT, [*PROMPTS, "a sks teapot on the moon"], 1, Store(tmp_path)) is None
