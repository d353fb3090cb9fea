"""The formulas against their definitions, written out pair by pair."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from dbexp.core.errors import ConfigError
from dbexp.evaluate.columns import COLUMNS
from dbexp.evaluate.functional import (
    FloatArray,
    Resampling,
    bootstrap,
    copy_threshold,
    estimate_difference,
    estimate_mean,
    estimate_pairs,
    mean_squared_distances,
    mean_to_others,
    normalise,
    without_token,
)

HOW = Resampling()


def unit(rows: int, dims: int, seed: int = 0) -> FloatArray:
    return normalise(np.random.default_rng(seed).normal(size=(rows, dims)), range(rows))


def test_hand_made_embeddings_give_the_cosine_of_the_specification() -> None:
    g = normalise([(1, 0), (0, 1)], "gh")
    r = normalise([(1, 0), (0.6, 0.8)], "rs")
    assert (g @ r.T).mean() == pytest.approx(0.6)


def test_rows_are_normalised_before_they_are_averaged() -> None:
    g = normalise([(3, 0), (0, 1)], "gh")
    assert (g @ np.array([1.0, 0.0])).mean() == pytest.approx(0.5)


def test_mean_to_others_is_the_loop_and_its_closed_form() -> None:
    x = unit(5, 7)
    loop = [np.mean([x[i] @ x[j] for j in range(5) if j != i]) for i in range(5)]
    closed = (25 * np.sum(x.mean(axis=0) ** 2) - 5) / (5 * 4)
    assert mean_to_others(x) == pytest.approx(loop)
    assert mean_to_others(x).mean() == pytest.approx(closed)


def test_mean_pairwise_cosine_is_the_product_of_the_means() -> None:
    g, r = unit(6, 9, seed=1), unit(4, 9, seed=2)
    loop = np.mean([a @ b for a in g for b in r])
    assert g.mean(axis=0) @ r.mean(axis=0) == pytest.approx(loop)


def test_mean_squared_distances_is_the_loop_over_pairs() -> None:
    x = np.random.default_rng(3).normal(size=(6, 11)).astype(np.float32)
    loop = np.mean([np.sum((a - b) ** 2, dtype=np.float64) for a, b in combinations(x, 2)])
    distances = mean_squared_distances(list(x))
    assert distances.mean() == pytest.approx(loop, rel=1e-6)
    assert distances.mean() == pytest.approx(2 * x.astype(np.float64).var(axis=0, ddof=1).sum())
    assert distances[2] == pytest.approx(np.mean([np.sum((x[2] - b) ** 2) for b in np.delete(x, 2, 0)]), rel=1e-6)


def test_duplicates_are_at_no_distance() -> None:
    x = np.full((4, 1000), 0.1, dtype=np.float32)
    distances = mean_squared_distances(list(x))
    assert (distances >= 0).all() and distances.max() < 1e-12


@pytest.mark.parametrize("bad", [(0.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_broken_embeddings_are_an_error_naming_the_image(bad: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"^b\.png: its embedding is"):
        normalise([(1, 0), bad], ["a.png", "b.png"])


def test_copy_threshold_is_the_largest_similarity_of_two_different_images() -> None:
    assert copy_threshold(normalise([(1, 0), (0.6, 0.8), (0, 1)], "abc")) == pytest.approx(0.8)
    assert math.isnan(copy_threshold(unit(1, 3)))


@pytest.mark.parametrize(
    ("prompt", "token", "expected"),
    [
        ("a sks dog in the snow", "sks", "a dog in the snow"),
        ("sks  dog,  a sks", "sks", "dog, a"),
        ("a dog in the snow", "sks", "a dog in the snow"),
        ("two  spaces stay as they are", "sks", "two  spaces stay as they are"),
        ("a sksy dog and unsks", "sks", "a sksy dog and unsks"),
        ("a <new1> dog", "<new1>", "a dog"),
        ("a s.s dog, sxs", "s.s", "a dog, sxs"),
        ("a (sks) dog", "sks", "a ( ) dog"),
    ],
)
def test_the_token_is_removed_as_a_whole_word(prompt: str, token: str, expected: str) -> None:
    assert without_token(prompt, token) == expected


def test_columns_declare_directions_and_bounds() -> None:
    assert list(COLUMNS)[:5] == ["dino", "clip_i", "clip_t", "pres", "div"]
    assert COLUMNS["pres"].better == "lower" and COLUMNS["div"].better == "higher"
    assert all(column.lower < column.upper and column.doc.endswith(".") for column in COLUMNS.values())


# ------------------------------------------------------------------------------------------------------ intervals


def test_the_mean_weighs_prompts_by_their_pictures_and_skips_nan() -> None:
    estimate = estimate_mean([1.0, 4.0, math.nan], HOW, counts=[3, 1, 0])
    assert estimate.value == pytest.approx(7 / 4)
    assert estimate.n == 2
    assert estimate.low == pytest.approx(1) and estimate.high == pytest.approx(4)


def test_nothing_to_average_is_nan_with_its_reason() -> None:
    estimate = estimate_mean([math.nan], HOW, reason="no real images")
    assert math.isnan(estimate.value) and estimate.reason == "no real images" and estimate.n == 0


def test_one_prompt_has_no_interval() -> None:
    estimate = estimate_mean([0.5], HOW)
    assert estimate.value == 0.5 and math.isnan(estimate.low) and math.isnan(estimate.high)


def test_intervals_repeat_with_the_seed_and_differ_without() -> None:
    values = np.random.default_rng(0).normal(size=25)
    first, again = estimate_mean(values, HOW), estimate_mean(values, HOW)
    assert first == again
    assert estimate_mean(values, Resampling(seed=1)).low != first.low


def test_the_interval_of_a_mean_covers_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    how = Resampling(resamples=300, confidence=0.9)
    hits = [(e := estimate_mean(generator.normal(size=30), how)).low <= 0 <= e.high for _ in range(300)]
    assert 0.84 <= np.mean(hits) <= 0.94


def test_the_interval_of_a_pair_mean_has_the_width_that_theory_gives() -> None:
    # U-statistic with kernel (x - y)^2 and normal x: the first projection is x^2 + 1, so the standard error is
    # 2 sqrt(var(x^2) / n) = 2 sqrt(2 / n)
    x = np.random.default_rng(0).normal(size=(400, 1))
    estimate = estimate_pairs(mean_squared_distances(list(x)), HOW)
    assert estimate.value == pytest.approx(2 * x.var(ddof=1))
    assert estimate.low < estimate.value < estimate.high
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 2 * math.sqrt(2 / 400), rel=0.15)


def test_two_items_make_a_pair_without_interval() -> None:
    estimate = estimate_pairs(np.array([0.3, 0.3]), HOW)
    assert estimate.value == 0.3 and math.isnan(estimate.low) and estimate.n == 2


def test_the_difference_of_aligned_lists_is_resampled_together() -> None:
    noise = np.random.default_rng(0).normal(size=50)
    estimate = estimate_difference(noise + 0.25, noise, HOW)
    assert [estimate.value, estimate.low, estimate.high] == pytest.approx([0.25] * 3)
    lopsided = estimate_difference([1.0, 2.0, math.nan], [0.0, math.nan, 0.0], HOW)
    assert lopsided.value == pytest.approx(1.5) and lopsided.n == 3
    assert estimate_difference([math.nan], [1.0], HOW).reason


def test_draws_without_a_value_are_left_out() -> None:
    values = np.array([1.0, math.nan])
    low, high = bootstrap(lambda indices: values[indices].mean(axis=1), 2, HOW)
    assert low == high == 1.0
