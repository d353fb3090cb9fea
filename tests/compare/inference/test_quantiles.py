"""Quantiles, against SciPy's."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from dbexp.compare.inference.quantiles import f_tail, range_quantile, t_quantile


@pytest.mark.parametrize("df", [1, 2.5, 7, 24, 400])
def test_quantiles_are_those_of_scipy(df: float) -> None:
    assert t_quantile(0.975, df) == pytest.approx(stats.t.ppf(0.975, df))
    assert f_tail(1.7, 2, df) == pytest.approx(stats.f.sf(1.7, 2, df))
    assert range_quantile(0.95, 2, df) == pytest.approx(stats.t.ppf(0.975, df), rel=1e-3)
    for count in (3, 8):
        expected = stats.studentized_range.ppf(0.95, count, df) / math.sqrt(2)
        assert range_quantile(0.95, count, df) == pytest.approx(expected, rel=1e-3)
