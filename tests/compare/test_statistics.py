"""What scores support, against values by hand and scipy's bootstrap."""

from __future__ import annotations

import math
import statistics as reference

import numpy as np
import pytest
from scipy import stats

from dbexp.compare.statistics import RunScores, difference, main_effect, matched, moments, pareto, pooled_deviation
from dbexp.evaluate.functional import Resampling

PROMPTS, EACH = 12, 4


def trial(
    value: float = math.nan, pictures: dict[tuple[str, str, int], float] | None = None, **settings: str
) -> RunScores:
    return RunScores(settings, {"dino": value}, {"dino": pictures or {}})


def pictures(generator: np.random.Generator, centre: float) -> dict[tuple[str, str, int], float]:
    """Values of pictures: prompts differ much, pictures of a prompt little."""
    of_prompt = np.random.default_rng(5).normal(0, 0.2, PROMPTS)
    noise = generator.normal(0, 0.05, PROMPTS)
    return {
        ("dog", f"prompt {p}", k): centre + of_prompt[p] + noise[p] + generator.normal(0, 0.01)
        for p in range(PROMPTS)
        for k in range(EACH)
    }


def test_moments() -> None:
    values = [0.5, 0.7, 0.1]
    result = moments([*values, math.nan])
    assert result.mean == pytest.approx(reference.mean(values))
    assert result.deviation == pytest.approx(reference.stdev(values))
    assert result.n == 3
    assert math.isnan(moments([0.5]).deviation) and math.isnan(moments([]).mean)


def test_spread_within_groups() -> None:
    """Squares about the means: 2 of {1, 3}, 8 of {10, 14}; four values in two groups leave two degrees of freedom."""
    result = pooled_deviation([[1, 3], [10, 14], [5]])
    assert result.deviation == pytest.approx(math.sqrt(10 / 2)) and result.n == 4
    assert math.isnan(pooled_deviation([[1], [2]]).deviation)


def test_a_difference_is_that_of_pairs_and_its_interval_that_of_scipy() -> None:
    generator = np.random.default_rng(0)
    first, second = pictures(generator, 0.5), pictures(generator, 0.53)
    result = difference([(trial(pictures=first), trial(pictures=second))], "dino", Resampling(20_000, 0.95, 1))
    of_prompts = [
        np.mean([second["dog", f"prompt {p}", k] - first["dog", f"prompt {p}", k] for k in range(EACH)])
        for p in range(PROMPTS)
    ]
    bootstrap = stats.bootstrap((of_prompts,), np.mean, n_resamples=20_000, method="percentile", rng=generator)
    low, high = bootstrap.confidence_interval
    close = 0.05 * (high - low)  # what 20,000 resamples leave to chance is below a fiftieth of the width
    assert result.estimate.value == pytest.approx(np.mean(of_prompts))
    assert result.estimate.low == pytest.approx(low, abs=close)
    assert result.estimate.high == pytest.approx(high, abs=close)
    assert result.estimate.n == PROMPTS * EACH


def test_pairs_of_runs_do_not_overwrite_one_another() -> None:
    def shifted(by: float) -> dict[tuple[str, str, int], float]:
        return {("dog", prompt, k): by for prompt in "ab" for k in range(2)}

    pairs = [(trial(0.0, shifted(0)), trial(0.2, shifted(0.2))), (trial(0.0, shifted(0)), trial(-0.1, shifted(-0.1)))]
    result = difference(pairs, "dino", Resampling(100))
    assert result.estimate.value == pytest.approx(0.05) and result.estimate.n == 8
    assert (result.runs, result.agreeing) == (2, 1)


def test_values_of_runs_alone_make_no_interval() -> None:
    result = difference([(trial(0.5), trial(0.7)), (trial(0.4), trial(0.5))], "dino", Resampling(100))
    assert result.estimate.value == pytest.approx(0.15)
    assert math.isnan(result.estimate.low) and not result.is_significant


def test_only_runs_that_agree_in_everything_else_are_matched() -> None:
    trials = [trial(rank=rank, weight=weight) for rank in ("4", "8") for weight in ("0", "1")][:3]
    assert matched(trials, "rank", "4", "8") == [(trials[0], trials[2])]
    assert matched(trials, "weight", "0", "1") == [(trials[0], trials[1])]


def test_means_per_value() -> None:
    result = main_effect([trial(0.5, rank="4"), trial(0.7, rank="4"), trial(0.1, rank="8")], "rank", "dino")
    assert result["4"].mean == pytest.approx(0.6) and result["4"].n == 2 and result["8"].mean == 0.1


def test_the_front() -> None:
    points = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.5), (0.5, 0.5), (math.nan, 2.0)]
    assert pareto(points) == [True, True, True, False, True, False]
