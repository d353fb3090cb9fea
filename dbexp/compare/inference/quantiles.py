"""Quantiles that intervals need: Student's t, F, and the studentised range for comparisons of several settings.

t and F come from SciPy's special functions (an `import scipy.stats` would cost every command half a second); the
studentised range is integrated here, in milliseconds, and tested against `scipy.stats.studentized_range`.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

_NODES = 64  # of each Gauss-Legendre rule; the tests hold the result within a thousandth of SciPy's


def t_quantile(probability: float, df: float) -> float:
    """Of Student's t with `df` > 0 degrees of freedom, which need not be a whole number; inf for the normal."""
    return float(special.ndtri(probability) if math.isinf(df) else special.stdtrit(df, probability))


def f_tail(ratio: float, df_above: float, df_below: float) -> float:
    """Probability that F with these degrees of freedom exceeds a ratio of mean squares."""
    return float(special.fdtrc(df_above, df_below, ratio))


@lru_cache(maxsize=512)
def range_quantile(probability: float, count: int, df: float) -> float:
    """Quantile of the largest difference between `count` >= 2 standardised means, in units of one difference's error.

    q(count, df) / sqrt(2) of the studentised range (Tukey, 1953; Kramer, "Extension of multiple range tests to group
    means with unequal numbers of replications", Biometrics 12, 1956). For two means it is Student's t, two-sided.
    """
    low, high = 0.0, 10.0
    while _range_cdf(high, count, df) < probability:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _range_cdf(middle, count, df) < probability else (low, middle)
    return high / math.sqrt(2)


def _range_cdf(q: float, count: int, df: float) -> float:
    """P(range <= q s) = count * integral of phi(z) [Phi(z) - Phi(z - q s)]^(count - 1) dz, s = chi_df / sqrt(df)."""
    z, z_weights = _rule(-8.0, 8.0)
    if math.isinf(df):
        s, s_weights = np.ones(1), np.ones(1)
    else:
        # quantiles of s at Gauss-Legendre probabilities: dense where s is likely
        p, s_weights = _rule(0.0, 1.0)
        s = np.sqrt(2 * special.gammaincinv(df / 2, p) / df)
    between = special.ndtr(z)[None] - special.ndtr(z[None] - q * s[:, None])
    inner = count * (np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * between ** (count - 1)) @ z_weights
    return float(inner @ s_weights)


@lru_cache(maxsize=8)
def _rule(low: float, high: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    return low + (high - low) * (nodes + 1) / 2, weights * (high - low) / 2
