"""Settings against the best, by Tukey; interactions, by Holm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dbexp.compare.inference.effect import effect, gather
from dbexp.compare.inference.multiple import flip, interactions, rank
from tests.compare.inference.grids import noisy, pictures


def test_settings_against_the_best_by_tukey() -> None:
    """One prompt, no parameter but rank: seeds are blocks, the half width is Tukey's of a randomised block design."""
    generator = np.random.default_rng(3)
    table = generator.normal(0, 0.1, (4, 5)) + np.array([0.0, 0.3, 0.9, 1.0])[:, None]
    frame = pictures(lambda rank, seed, **_: table[rank, seed], rank=4, seed=5).drop(columns="weight")
    ranked = rank(frame)
    assert [each.settings["rank"] for each in ranked] == ["3", "2", "1", "0"]
    assert ranked[0].behind is None and ranked[0].mean == pytest.approx(table[3].mean())
    residual = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    pooled = math.sqrt((residual**2).sum() / 12 / 5)
    tukey = stats.studentized_range.ppf(0.95, 4, 12) * pooled
    assert [each.behind.half_width for each in ranked if each.behind] == pytest.approx([tukey] * 3, rel=1e-3)
    assert [each.is_behind for each in ranked[2:]] == [True, True]
    lower = rank(frame.assign(value=-frame["value"]), "lower")
    assert [each.settings for each in lower] == [each.settings for each in ranked]


def test_an_interaction_is_found_and_told_apart() -> None:
    frame = noisy(weight=2, seed=3, prompt=8)
    assert not any(each.is_significant for each in interactions(frame))
    tilted = frame.assign(value=frame["value"] - 0.2 * frame["rank"] * frame["weight"])
    (interaction,) = interactions(tilted)
    assert interaction.is_significant and (interaction.parameter, interaction.other) == ("rank", "weight")
    assert interaction.difference.value == pytest.approx(interaction.at_high.value - interaction.at_low.value)
    assert interaction.at_low.is_significant and not interaction.at_high.is_significant
    assert interaction.at_low.value == pytest.approx(effect(tilted[tilted["weight"] == 0], "rank", 0, 1).value)


def test_an_interaction_has_two_sides() -> None:
    frame = noisy(weight=2, seed=3, prompt=8)
    (interaction,) = interactions(frame)
    side = flip(gather(frame), interaction)
    assert side is not None and (side.parameter, side.other, side.p_value) == ("weight", "rank", interaction.p_value)
    assert side.difference == interaction.difference
    assert side.at_high.value - side.at_low.value == pytest.approx(interaction.difference.value)
    assert side.at_low.value == pytest.approx(effect(frame[frame["rank"] == 0], "weight", 0, 1).value)
    crossed = frame[(frame["weight"] == 0) & (frame["seed"] < 2) | (frame["weight"] == 1) & (frame["seed"] == 2)]
    assert [flip(gather(crossed), each) for each in interactions(crossed)] == [None], "no seed has both weights"


def test_p_values_of_interactions_are_those_of_holm() -> None:
    frame = noisy(rank=3, weight=2, seed=3, prompt=4)
    tests = interactions(frame)
    raw = [each.difference.p_value for each in tests]
    assert [each.p_value for each in tests] == pytest.approx([min(1, 2 * raw[0]), min(1, max(2 * raw[0], raw[1]))])
