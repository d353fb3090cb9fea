"""Intervals of effects: cases by hand and by SciPy, what seeds, subjects and gaps do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas
import pytest
from scipy import stats

from dbexp.compare.inference.components import Part, Parts
from dbexp.compare.inference.effect import effect
from dbexp.compare.inference.estimate import EffectEstimate
from dbexp.compare.inference.multiple import interactions, rank
from dbexp.compare.inference.pairing import without_gaps
from dbexp.core.errors import ConfigError
from tests.compare.inference.grids import noisy, pictures


def ends(estimate: EffectEstimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def test_seeds_alone_make_a_t_interval() -> None:
    """One prompt, one picture: SciPy's t interval of the paired differences of runs."""
    differences = [0.1, 0.3, 0.2, 0.6]
    frame = pictures(lambda rank, seed, **_: rank * differences[seed] + seed, seed=4)
    estimate = effect(frame, "rank", 0, 1)
    expected = stats.ttest_1samp(differences, 0)
    interval = expected.confidence_interval()
    assert ends(estimate) == pytest.approx((0.3, interval.low, interval.high))
    assert estimate.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert estimate.df == pytest.approx(3) and estimate.standard_error == pytest.approx(stats.sem(differences))
    assert estimate.scope == "for training seeds like these (4 seeds), on this prompt"


def test_one_seed_makes_a_t_interval_of_prompts_and_is_never_significant() -> None:
    differences = [0.5, 0.7, 0.6, 0.65]
    frame = pictures(lambda rank, prompt, **_: rank * differences[prompt] + 3 * prompt, prompt=4)
    estimate = effect(frame, "rank", 0, 1)
    interval = stats.ttest_1samp(differences, 0).confidence_interval()
    assert ends(estimate) == pytest.approx((0.6125, interval.low, interval.high))
    assert estimate.low > 0 and not estimate.is_significant
    assert estimate.scope == "on these prompts, for this seed"
    assert math.isnan(estimate.half_width_with(3))


def test_one_seed_is_never_significant_whatever_else_is_known() -> None:
    frame = noisy(rank=3, weight=2, seed=3, prompt=5, subjects=2)
    one_at_high = frame[(frame["rank"] != 1) | (frame["seed"] == 0)]
    for subset in (frame[frame["seed"] == 0], one_at_high):
        estimate = effect(subset, "rank", 0, 1, subjects="fixed")
        assert estimate.low > 0 and estimate.counts.seeds == 1 and not estimate.is_significant
        assert not effect(subset, "rank", 0, 1).is_significant
    alone = one_at_high[one_at_high["subject"] == 0]
    estimate = effect(alone, "rank", 0, 1)
    assert estimate.scope == "on these prompts, with the spread of seeds of other settings"
    assert estimate.half_width > effect(alone[alone["seed"] == 0], "rank", 0, 1).half_width
    assert not any(each.is_behind for each in rank(frame[frame["seed"] == 0]))
    assert not any(each.is_significant for each in interactions(frame[frame["seed"] == 0]))


def test_two_seeds_and_two_prompts_by_hand() -> None:
    """Differences [[1, 3], [5, 11]] of seeds x prompts.

    Row means 2, 8: rows 18 / 2 = 9. Column means 3, 7: columns 8 / 2 = 4. The additive fit leaves 1, -1, -1, 1: cells
    (4 / 1) / 4 = 1. Each with one degree of freedom, t = 12.706: half width 12.706 sqrt(9 + 4 - 1).
    """
    table = [[1.0, 3.0], [5.0, 11.0]]
    estimate = effect(
        pictures(lambda rank, seed, prompt, **_: rank * table[seed][prompt], seed=2, prompt=2), "rank", 0, 1
    )
    assert estimate.parts == Parts(Part(9, 1), Part(4, 1), Part(1, 1))
    assert estimate.standard_error == pytest.approx(math.sqrt(12))
    assert estimate.half_width == pytest.approx(stats.t.ppf(0.975, 1) * math.sqrt(12))
    assert estimate.agreeing == 2 and (estimate.counts.runs, estimate.counts.pictures) == (2, 4)


def test_the_interval_from_mean_squares_in_numpy() -> None:
    """Five seeds, four prompts, three pictures; what a reader of the documentation would compute."""
    frame = noisy(seed=5, prompt=4, image=3)
    wide = frame.pivot_table(index=["seed", "prompt"], columns="rank", values="value")
    d = (wide[1] - wide[0]).unstack("prompt").to_numpy()
    rows, columns = d.mean(axis=1).var(ddof=1) / 5, d.mean(axis=0).var(ddof=1) / 4
    residual = d - d.mean(axis=1, keepdims=True) - d.mean(axis=0) + d.mean()
    cells = (residual**2).sum() / (4 * 3) / (5 * 4)
    t = [stats.t.ppf(0.975, df) ** 2 for df in (4, 3, 12)]
    half = math.sqrt(max(t[0] * rows + t[1] * columns - t[2] * cells, t[0] * rows, t[1] * columns))
    assert ends(effect(frame, "rank", 0, 1)) == pytest.approx((d.mean(), d.mean() - half, d.mean() + half))


def test_an_effect_turned_round_is_its_mirror() -> None:
    frame = noisy(rank=3, weight=2, seed=3, prompt=6, image=2)
    forward, backward = effect(frame, "rank", 0, 2), effect(frame, "rank", 2, 0)
    assert ends(backward) == pytest.approx((-forward.value, -forward.high, -forward.low))
    assert backward.agreeing == forward.agreeing and backward.p_value == pytest.approx(forward.p_value)


def test_shift_and_scale_of_a_column() -> None:
    frame = noisy(seed=3, prompt=6)
    plain, changed = (effect(f, "rank", 0, 1) for f in (frame, frame.assign(value=7 - 2 * frame["value"])))
    assert ends(changed) == pytest.approx((-2 * plain.value, -2 * plain.high, -2 * plain.low))


def test_the_order_of_rows_and_the_kind_of_table_do_not_matter() -> None:
    frame = noisy(rank=3, weight=2, seed=3, prompt=6, image=2, subjects=3)
    shuffled = frame.sample(frac=1, random_state=1)
    as_words = {name: [str(v) for v in column] if name != "value" else list(column) for name, column in frame.items()}
    expected = ends(effect(frame, "rank", 0, 1))
    assert ends(effect(shuffled, "rank", 0, 1)) == expected == ends(effect(as_words, "rank", "0.0", 1.0))


def test_what_settings_share_cancels() -> None:
    frame = noisy(seed=3, prompt=6, image=2)
    shared = frame["seed"] * 3 + frame["prompt"] ** 2 + frame["image"] * frame["seed"]
    assert ends(effect(frame.assign(value=frame["value"] + shared), "rank", 0, 1)) == pytest.approx(
        ends(effect(frame, "rank", 0, 1))
    )


def test_contexts_count_alike_and_their_own_effects_do_not_widen() -> None:
    frame = noisy(weight=2, seed=3, prompt=6)
    tilted = frame.assign(value=frame["value"] + (frame["rank"] * frame["weight"]) * 4)
    assert effect(tilted, "rank", 0, 1).value == pytest.approx(effect(frame, "rank", 0, 1).value + 2)
    assert effect(tilted, "rank", 0, 1).half_width == pytest.approx(effect(frame, "rank", 0, 1).half_width)
    fewer = tilted[(tilted["weight"] == 0) | (tilted["seed"] == 0)]  # one pair of runs against three: still half each
    of_contexts = [effect(fewer[fewer["weight"] == w], "rank", 0, 1).value for w in (0, 1)]
    assert effect(fewer, "rank", 0, 1).value == pytest.approx(np.mean(of_contexts))


def test_contexts_are_no_replicates_of_a_seed() -> None:
    """Luck that a seed has in all contexts alike: the interval is that of the seeds, as if there were one context."""
    luck = [0.1, 0.3, 0.2]
    frame = pictures(lambda rank, seed, **_: rank * luck[seed], weight=2, seed=3)
    alone = effect(frame[frame["weight"] == 0].drop(columns="weight"), "rank", 0, 1)
    together = effect(frame, "rank", 0, 1)
    assert together.counts.contexts == 2 and together.standard_error == pytest.approx(alone.standard_error)


def test_a_third_value_tells_more_of_the_seeds() -> None:
    frame = noisy(rank=3, seed=2, prompt=8)
    alone, among = effect(frame[frame["rank"] < 2], "rank", 0, 1), effect(frame, "rank", 0, 1)
    assert among.value == pytest.approx(alone.value)
    assert (alone.parts.rows.df, among.parts.rows.df) == (1, 2)


def test_a_third_seed_is_worth_much() -> None:
    estimate = effect(noisy(seed=2, prompt=8), "rank", 0, 1)
    assert estimate.half_width_with(2) == pytest.approx(estimate.half_width)
    assert estimate.half_width_with(3) < 0.5 * estimate.half_width
    assert estimate.half_width_with(5) < estimate.half_width_with(3)
    with pytest.raises(ConfigError, match="seeds=0"):
        estimate.half_width_with(0)


def test_subjects_are_a_sample_unless_told_otherwise() -> None:
    by_subject = [0.1, 0.5, 0.3]
    frame = pictures(lambda rank, subject, **_: rank * by_subject[subject], subjects=3, seed=2, prompt=4)
    sample, fixed = effect(frame, "rank", 0, 1), effect(frame, "rank", 0, 1, subjects="fixed")
    interval = stats.ttest_1samp(by_subject, 0).confidence_interval()
    assert ends(sample) == pytest.approx((0.3, interval.low, interval.high))
    assert ends(fixed) == pytest.approx((0.3, 0.3, 0.3))
    assert sample.scope.startswith(
        "for subjects, prompts and training seeds like these (3 subjects, 4 prompts, 2 seeds"
    )
    assert fixed.scope.endswith("like these (4 prompts, 2 seeds), on these 3 subjects")


def test_prompts_of_their_own_are_in_the_spread_of_subjects() -> None:
    frame = noisy(subjects=3, seed=2, prompt=5)
    separate = frame.assign(prompt=frame["prompt"] + 10 * frame["subject"])
    estimate = effect(separate, "rank", 0, 1)
    means = [effect(separate[separate["subject"] == s], "rank", 0, 1).value for s in range(3)]
    assert estimate.half_width == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(means))
    assert estimate.counts.prompts == 15 and "15 prompts" in estimate.scope


def test_missing_pictures_cost_little() -> None:
    frame = noisy(seed=3, prompt=8, image=3)
    holes = frame.assign(value=frame["value"].mask(np.random.default_rng(1).random(len(frame)) < 0.1))
    for lost in (holes, holes.dropna(), holes.replace(np.nan, np.inf)):
        estimate = effect(lost, "rank", 0, 1)
        assert estimate.value == pytest.approx(effect(frame, "rank", 0, 1).value, abs=0.02)
        assert estimate.counts.pictures < 72 and estimate.counts.runs == 3
    assert ends(effect(holes, "rank", 0, 1)) == ends(effect(holes.dropna(), "rank", 0, 1))


def test_a_prompt_that_a_run_lacks_does_not_pass_for_an_effect_of_the_run() -> None:
    frame = pictures(lambda rank, seed, prompt, **_: rank * (0.1 * seed + float(prompt)), seed=3, prompt=4)
    lost = frame[(frame["seed"] > 0) | (frame["prompt"] < 3)]
    assert ends(effect(lost, "rank", 0, 1)) == pytest.approx(ends(effect(frame, "rank", 0, 1)), rel=1e-6)


def test_gaps_are_filled_by_least_squares() -> None:
    table = np.random.default_rng(0).normal(size=(4, 6))
    table[0, 1] = table[2, 3] = table[2, 4] = math.nan
    rows, columns = (index.reshape(-1) for index in np.indices(table.shape))
    design = np.concatenate([rows[:, None] == np.arange(4), columns[:, None] == np.arange(6)], axis=1).astype(float)
    there = np.isfinite(table.reshape(-1))
    solution = np.linalg.lstsq(design[there], table.reshape(-1)[there], rcond=None)[0]
    expected = np.where(np.isfinite(table), table, (design @ solution).reshape(table.shape))
    assert without_gaps(table) == pytest.approx(expected)


def test_lost_runs_leave_the_pairs_that_are_whole() -> None:
    frame = noisy(weight=2, seed=3, prompt=5)
    lost = frame[~((frame["rank"] == 1) & (frame["weight"] == 1) & (frame["seed"] == 2))]
    estimate = effect(lost, "rank", 0, 1)
    assert estimate.counts.runs == 5 and estimate.counts.contexts == 2 and estimate.is_significant
    gone = lost.assign(value=lost["value"].mask((lost["seed"] == 1) & (lost["rank"] == 0)))
    assert effect(gone, "rank", 0, 1).counts.runs == 3


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda f: f.drop(columns="prompt"), ("rank", 0, 1), "column prompt is missing; there are rank"),
        (lambda f: f[:0], ("rank", 0, 1), "there is no row"),
        (lambda f: f, ("rnk", 0, 1), "parameter=rnk: is no swept parameter of pictures; choose one of rank, weight"),
        (lambda f: f, ("rank", 0, 8), "rank=8: no picture has it; there are 0, 1"),
        (lambda f: f, ("rank", 1, 1.0), "rank: low and high are both 1"),
        (lambda f: pandas.concat([f, f[3:4]]), ("rank", 0, 1), "2 rows speak of one picture .rank=0, weight=0, seed=1"),
        (lambda f: f.assign(value="high"), ("rank", 0, 1), "column value is not of numbers"),
        (lambda f: f.assign(seed=f["seed"].mask(f["seed"] == 1)), ("rank", 0, 1), "column seed is empty in row"),
        (lambda f: f.assign(seed=f["seed"] + 2 * f["rank"]), ("rank", 0, 1), "no two runs differ in it alone"),
        (lambda f: f.assign(value=math.nan), ("rank", 0, 1), "no picture has a value"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: Callable[[Any], Any], arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        effect(change(noisy(seed=2, prompt=2)), *arguments)


def test_options_are_checked() -> None:
    frame = noisy(seed=2, prompt=2)
    with pytest.raises(ConfigError, match="confidence=95"):
        effect(frame, "rank", 0, 1, confidence=95)
    with pytest.raises(ConfigError, match="subjects=all: choose sample or fixed"):
        effect(frame, "rank", 0, 1, subjects="all")
