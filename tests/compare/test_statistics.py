"""Means, spreads, pairs of runs and the front, against values by hand."""

from __future__ import annotations

import math
import statistics as reference

import pytest

from dbexp.compare.statistics import by_level, matched, moments, pareto, pooled_deviation


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


def test_only_runs_that_agree_in_everything_else_are_matched() -> None:
    settings = [{"rank": rank, "weight": weight} for rank in ("4", "8") for weight in ("0", "1")][:3]
    assert matched(settings, "rank", "4", "8") == [(0, 2)]
    assert matched(settings, "weight", "0", "1") == [(0, 1)]


def test_means_per_value() -> None:
    result = by_level(["4", "4", "8"], [0.5, 0.7, 0.1])
    assert result["4"].mean == pytest.approx(0.6) and result["4"].n == 2 and result["8"].mean == 0.1


def test_the_front() -> None:
    points = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (0.4, 0.5), (0.5, 0.5), (math.nan, 2.0)]
    assert pareto(points) == [True, True, True, False, True, False]
