"""How uncertain a mean paired difference is: the part of the training seeds, of the prompts, of both. Pure NumPy.

The model, of the difference between two settings for prompt p in the pair of runs of context c and seed r:

    d[c, r, p] = delta[c] + A[r] + B[c, r] + P[p] + e[c, r, p]

A context is a combination of the other swept parameters, and their effects delta are fixed: averaged with equal
weight. Random are P, what the setting does to a prompt beyond the mean (setting x prompt); B, a training run's own luck
(setting x context x seed); A, luck that a seed has in all contexts alike (setting x seed); e, everything else, mostly
the noise of single images. What runs of one seed share for both settings has cancelled in the difference.

The mean of all cells has variance (row part) + (column part) - (cell part), each a mean square divided by counts: rows
are pairs of runs, columns prompts, and the cells' noise is in both parts, so it is taken off once (two-way crossed
random effects: Searle, Casella and McCulloch, Variance Components, 1992, chapter 4; prompts as a random factor like the
items of Clark, "The language-as-fixed-effect fallacy", J. Verbal Learning and Verbal Behavior 12, 1973).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dbexp.compare.pairing import Cube, FloatArray, IntArray, Labels, mean_over, without_gaps
from dbexp.compare.quantiles import f_tail

SHARED = 0.25
"""Contexts do not count as replicates if an F test at this level sees luck that a seed has in all of them. Such tests
before pooling should be lenient (Bancroft, "Analysis and inference for incompletely specified models involving the use
of preliminary tests of significance", Biometrics 20, 1964, recommends .25)."""
FEW = 4
"""Below this many degrees of freedom of their own, pairs borrow those of other settings, and take the larger of the two
mean squares: runs at one value of a parameter may be wilder than at the others."""


@dataclass(frozen=True)
class Part:
    """An estimated variance of a mean, in squared units of the column, and its degrees of freedom; 0 where unknown."""

    variance: float
    df: float

    @property
    def is_known(self) -> bool:
        """Whether there is an estimate."""
        return self.df > 0


UNKNOWN = Part(math.nan, 0)


@dataclass(frozen=True)
class Parts:
    """What the variance of a mean difference is made of.

    Attributes:
        rows: of the training seeds (or of subjects), the noise of cells included.
        columns: of the prompts, the noise of cells included.
        cells: the noise of cells, which both contain.
    """

    rows: Part
    columns: Part
    cells: Part

    @property
    def variance(self) -> float:
        """Rows + columns - cells, and at least the larger of the two; NaN where neither is known."""
        return self._sum(lambda df: 1.0)

    def half_width(self, quantile: Callable[[float], float]) -> float:
        """Half the width of an interval; NaN where neither part is known.

        sqrt(q(df rows)^2 rows + q(df columns)^2 columns - q(df cells)^2 cells), and at least what rows or columns give
        alone: each part is stretched by the quantile of its own degrees of freedom (Howe, "Approximate confidence
        limits on the mean of X + Y where X and Y are two tabled independent random variables", JASA 69, 1974).
        Satterthwaite's single t is too narrow here whenever a seed part with one or two degrees of freedom comes out
        small by luck: it then takes the many degrees of the prompts.

        Args:
            quantile: degrees of freedom -> critical value, falling.
        """
        return math.sqrt(self._sum(lambda df: quantile(df) ** 2))

    def _sum(self, weight: Callable[[float], float]) -> float:
        known = [weight(part.df) * part.variance for part in (self.rows, self.columns) if part.is_known]
        if not known:
            return math.nan
        twice = weight(self.cells.df) * self.cells.variance if self.cells.is_known and len(known) == 2 else 0.0
        return max(sum(known) - twice, *known)


@dataclass(frozen=True)
class Table:
    """Paired differences of subjects that have the same prompts.

    Attributes:
        differences: [rows, prompts], NaN where missing.
        strata: [rows] number of (subject, context): rows of one stratum are replicates.
        seeds: [rows] number of the training seed.
        weights: [rows] what each row counts for; the value is their weighted sum of row means.
    """

    differences: FloatArray
    strata: IntArray
    seeds: IntArray
    weights: FloatArray


@dataclass(frozen=True)
class Spread:
    """A sum of squares, in squared units of the column, and its degrees of freedom."""

    squares: float
    df: int

    def plus(self, other: Spread) -> Spread:
        """Pooled."""
        return Spread(self.squares + other.squares, self.df + other.df)

    @property
    def mean_square(self) -> float:
        """0 where there are no degrees of freedom."""
        return self.squares / self.df if self.df else 0.0

    @property
    def doubled(self) -> Spread:
        """Of the difference between two runs, from that of one."""
        return Spread(2 * self.squares, self.df)


@dataclass(frozen=True)
class Spreads:
    """How far seeds move the difference of two runs, over the whole sweep.

    Attributes:
        blocks: of runs of equal seed (`block_spread`).
        settings: of runs that differ in their seed alone (`setting_spread`); used if there is nothing better.
    """

    blocks: Spread
    settings: Spread


_EMPTY = Spread(0.0, 0)
NOTHING = Spreads(_EMPTY, _EMPTY)


def mean_difference(tables: Sequence[Table], spreads: Spreads) -> tuple[float, Parts, FloatArray]:
    """The value, the parts of its variance, and the mean of each row.

    Args:
        tables: one for each set of prompts that share no prompt with the others.
        spreads: of the whole sweep, the rows of the tables included.
    """
    complete = [replace(table, differences=without_gaps(table.differences)) for table in tables]
    means = np.concatenate([table.differences.mean(axis=1) for table in complete])
    weights = np.concatenate([table.weights for table in complete])
    seeds = np.concatenate([table.seeds for table in complete])
    rows = _rows(means, weights, _strata(complete), seeds, spreads)
    return float(weights @ means), Parts(rows, _columns(complete), _cells(tables, complete)), means


def joined(tables: Sequence[Table]) -> Table:
    """Tables of the same prompts as one; their strata stay apart, their seeds do not."""
    return Table(
        np.concatenate([table.differences for table in tables]),
        _strata(tables),
        np.concatenate([table.seeds for table in tables]),
        np.concatenate([table.weights for table in tables]),
    )


def _strata(tables: Sequence[Table]) -> IntArray:
    offsets = np.cumsum([0, *(int(table.strata.max()) + 1 for table in tables)])
    return np.concatenate([table.strata + offset for table, offset in zip(tables, offsets, strict=False)])


def _rows(means: FloatArray, weights: FloatArray, strata: IntArray, seeds: IntArray, spreads: Spreads) -> Part:
    """Variance of the weighted mean of rows from their spread within strata, or from that of other settings."""
    own, left = _residual(means, strata), _residual(means, strata, seeds)
    spread = own
    elsewhere = Spread(max(spreads.blocks.squares - own.squares, 0.0), max(spreads.blocks.df - own.df, 0))
    if own.df < FEW and elsewhere.df:
        pooled = own.plus(elsewhere)
        spread = Spread(max(own.mean_square, pooled.mean_square) * pooled.df, pooled.df)
    if not spread.df:
        spread = spreads.settings
    part = Part(spread.mean_square * float(weights @ weights), spread.df) if spread.df else UNKNOWN
    shared = Spread(own.squares - left.squares, own.df - left.df)
    if shared.df and left.df and _tail(shared, left) < SHARED:
        other = _with_shared_luck(weights, strata, seeds, shared, left)
        # where it is smaller, luck that contexts share has cancelled, as in a contrast between them
        part = other if other.variance > part.variance else part
    return part


def _with_shared_luck(weights: FloatArray, strata: IntArray, seeds: IntArray, shared: Spread, left: Spread) -> Part:
    """Variance of the weighted mean of rows if a seed has luck A in all strata beside B in each.

    E[mean square of seeds] = var B + var A (rows - strata) / df. So the variance, var A times the sum over seeds of
    (sum of a seed's weights)^2 + var B times the sum of squared weights, is a sum of the two mean squares; its degrees
    of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946).
    """
    by_seed = np.bincount(seeds, weights)
    above = float(by_seed @ by_seed) * shared.df / (len(weights) - len(np.unique(strata)))
    below = max(float(weights @ weights) - above, 0.0)
    terms = [(above * shared.mean_square, shared.df), (below * left.mean_square, left.df)]
    variance = sum(term for term, _ in terms)
    spread = sum(term**2 / df for term, df in terms)
    return Part(variance, variance**2 / spread if spread else shared.df)


def _tail(above: Spread, below: Spread) -> float:
    """Probability of a larger ratio of the two mean squares if both estimate one variance."""
    if below.squares <= 0:
        return 0.0 if above.squares > 0 else 1.0
    return f_tail(above.mean_square / below.mean_square, above.df, below.df)


def _residual(values: FloatArray, *factors: IntArray) -> Spread:
    """Squares about the least-squares fit of additive factors."""
    design = np.concatenate([factor[:, None] == np.unique(factor) for factor in factors], axis=1).astype(np.float64)
    solution, _, rank, _ = np.linalg.lstsq(design, values, rcond=None)
    df = len(values) - int(rank)
    return Spread(float(((values - design @ solution) ** 2).sum()) if df else 0.0, df)


def _columns(tables: Iterable[Table]) -> Part:
    """Variance of the weighted means of prompts over their number, tables added."""
    variance, df = 0.0, 0
    for table in tables:
        means = table.weights @ table.differences
        if len(means) < 2:
            return UNKNOWN
        variance += float(means.var(ddof=1)) / len(means)
        df += len(means) - 1
    return Part(variance, df)


def _cells(tables: Sequence[Table], complete: Sequence[Table]) -> Part:
    """Mean square of rows x prompts within strata; a filled gap costs a degree of freedom."""
    squares, df, share = 0.0, 0, 0.0
    for table, full in zip(tables, complete, strict=True):
        prompts = full.differences.shape[1]
        centred = full.differences - full.differences.mean(axis=1, keepdims=True)
        for stratum in np.unique(full.strata):
            rows = centred[full.strata == stratum]
            squares += float(((rows - rows.mean(axis=0)) ** 2).sum())
            df += (len(rows) - 1) * (prompts - 1)
        df -= int((~np.isfinite(table.differences)).sum())
        share += float(table.weights @ table.weights) / prompts
    return Part(squares / df * share, df) if df > 0 else UNKNOWN


def block_spread(cubes: Sequence[Cube], parameter: str | None) -> Spread:
    """Spread of differences between runs of equal seed, over all settings.

    Blocks are contexts of a parameter, and runs within a block settings x seeds: what is left of their means when
    setting and seed are taken out, doubled, for a difference has two runs.

    Args:
        cubes: a cube a subject.
        parameter: settings of a block differ in it alone; None: one block a subject.
    """
    spread = _EMPTY
    for cube in cubes:
        means = run_means(cube)
        context = np.full_like(cube.settings, "")
        if parameter is not None:
            context = cube.settings.copy()
            context[:, cube.parameters.index(parameter)] = ""
        block, setting, seed = (numbers_of(labels) for labels in (context, cube.settings, cube.seeds[:, None]))
        for number in range(int(block.max()) + 1):
            there = block == number
            spread = spread.plus(_residual(means[there], setting[there], seed[there]).doubled)
    return spread


def setting_spread(cubes: Sequence[Cube]) -> Spread:
    """Spread of differences between runs, from runs that differ in their seed alone.

    What a seed does to all settings alike, and pairs would cancel, is part of it: rather too wide than too narrow.
    """
    spread = _EMPTY
    for cube in cubes:
        spread = spread.plus(_residual(run_means(cube), numbers_of(cube.settings)).doubled)
    return spread


def run_means(cube: Cube) -> FloatArray:
    """Mean over prompts of the mean over images, [runs], gaps filled as in `without_gaps`."""
    table = mean_over(cube.values)
    return np.asarray(without_gaps(table[:, np.isfinite(table).any(axis=0)]).mean(axis=1))


def numbers_of(labels: Labels) -> IntArray:
    """Number of each distinct row of labels, [rows, columns] -> [rows]."""
    if not labels.shape[1]:
        return np.zeros(len(labels), dtype=np.int64)
    coded = np.stack([np.unique(column, return_inverse=True)[1] for column in labels.T], axis=1)
    return np.asarray(np.unique(coded, axis=0, return_inverse=True)[1].reshape(-1), dtype=np.int64)
