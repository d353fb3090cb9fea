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

from dbexp.compare.inference.pairing import Cube, FloatArray, IntArray, Labels, mean_over, without_gaps
from dbexp.compare.inference.quantiles import f_tail


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
        terms = [weight(part.df) * part.variance for part in (self.rows, self.columns) if part.is_known]
        if not terms:
            return math.nan
        twice = weight(self.cells.df) * self.cells.variance if self.cells.is_known and len(terms) == 2 else 0.0
        return max(sum(terms) - twice, *terms)


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

    @property
    def mean_square(self) -> float:
        """0 where there are no degrees of freedom."""
        return self.squares / self.df if self.df else 0.0

    @property
    def of_difference(self) -> Spread:
        """Of the difference between two runs, from that of one."""
        return Spread(2 * self.squares, self.df)


@dataclass(frozen=True)
class Spreads:
    """How far seeds move the difference of two runs, over the whole sweep.

    Attributes:
        parameters: parameter x seed: luck that a seed has at a value of a parameter, whatever the others are.
        cells: setting x seed, the former included.
        settings: of runs that differ in their seed alone. What a seed does to all settings alike, and pairs would
            cancel, is part of it: rather too wide than too narrow; used if there is nothing better.
        apart: level of the test that keeps pairs to their own spread where it is larger than the others'.
    """

    parameters: Spread
    cells: Spread
    settings: Spread
    apart: float = 0.25  # lenient, as tests before pooling should be (Bancroft, Biometrics 20, 1964, recommends .25)


_EMPTY = Spread(0.0, 0)
NOTHING = Spreads(_EMPTY, _EMPTY, _EMPTY)


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


def stack(tables: Sequence[Table]) -> Table:
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
    """Variance of the weighted mean of rows, A of the model being as large as it seems.

    Contexts are no replicates: luck that a seed has in all of them does not shrink with their number. The mean square
    of seeds has the expectation var B + var A (rows - strata) / df, so the variance, var A times the sum over seeds of
    (sum of a seed's weights)^2 + var B times the sum of squared weights, is a sum of two mean squares, of seeds and of
    what is left; its degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946). In a balanced mean only the
    first counts, in a contrast between contexts only the second.
    """
    total, remainder = _residual(means, strata), _residual(means, strata, seeds)
    common = Spread(total.squares - remainder.squares, total.df - remainder.df)
    of_seeds = _pool(common, spreads.parameters, spreads.apart)
    of_rest = _pool(remainder, spreads.cells, 0.0)  # luck that contexts share is in the sweep's: rather too wide
    square = float(weights @ weights)
    if not of_seeds.df:
        return Part(spreads.settings.mean_square * square, spreads.settings.df) if spreads.settings.df else UNKNOWN
    above = square
    if common.df:
        by_seed = np.bincount(seeds, weights)
        above = min(float(by_seed @ by_seed) * common.df / (len(means) - len(np.unique(strata))), square)
    terms = [(above, of_seeds), (square - above, of_rest)]
    variance = sum(share * spread.mean_square for share, spread in terms)
    doubt = sum((share * spread.mean_square) ** 2 / spread.df for share, spread in terms if spread.df)
    return Part(variance, variance**2 / doubt if doubt else of_seeds.df)


def _pool(pairs: Spread, sweep: Spread, apart: float) -> Spread:
    """The spread of some pairs, made surer by that of the whole sweep, which they are part of.

    Where the pairs' own spread is above that of the rest by an F test at level `apart`, it stands alone: runs at one
    value of a parameter may be wilder than at the others, or a seed's luck be that of the parameter.
    """
    rest = Spread(max(sweep.squares - pairs.squares, 0.0), max(sweep.df - pairs.df, 0))
    return pairs if not rest.df or (pairs.df and _tail(pairs, rest) < apart) else sweep


def _tail(above: Spread, below: Spread) -> float:
    """Probability of a larger ratio of the two mean squares if both estimate one variance."""
    if below.squares <= 0:
        return 0.0 if above.squares > 0 else 1.0
    return f_tail(above.mean_square / below.mean_square, above.df, below.df)


def _residual(values: FloatArray, cells: IntArray, *factors: IntArray) -> Spread:
    """Squares about the least-squares fit of cell means and of additive factors."""
    counts = np.bincount(cells)
    columns = [values[:, None], *(factor[:, None] == np.unique(factor) for factor in factors)]
    table = np.concatenate(columns, axis=1).astype(np.float64)
    sums = np.stack([np.bincount(cells, column) for column in table.T], axis=1)
    residual = table - (sums / np.maximum(counts, 1)[:, None])[cells]  # Frisch, Waugh and Lovell: cells are out
    df = len(values) - int((counts > 0).sum())
    rest = residual[:, 0]
    if factors and df:
        solution, _, rank, _ = np.linalg.lstsq(residual[:, 1:], rest, rcond=1e-10)
        rest, df = rest - residual[:, 1:] @ solution, df - int(rank)
    return Spread(float(rest @ rest) if df else 0.0, df)


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
        within = full.differences - full.differences.mean(axis=1, keepdims=True)
        for stratum in np.unique(full.strata):
            rows = within[full.strata == stratum]
            squares += float(((rows - rows.mean(axis=0)) ** 2).sum())
            df += (len(rows) - 1) * (prompts - 1)
        df -= int((~np.isfinite(table.differences)).sum())
        share += float(table.weights @ table.weights) / prompts
    return Part(squares / df * share, df) if df > 0 else UNKNOWN


def seed_spreads(cubes: Sequence[Cube]) -> Spreads:
    """Of a whole sweep, from the means of its runs; doubled, for a difference has two runs.

    What is left of run means when setting and seed are taken out, subject by subject, and how much of that follows the
    values of single parameters.

    Args:
        cubes: a cube a subject.
    """
    means = np.concatenate([run_means(cube) for cube in cubes])
    settings = np.concatenate([cube.settings for cube in cubes])
    subject = np.repeat([str(number) for number in range(len(cubes))], [len(cube.seeds) for cube in cubes])
    seed = np.concatenate([cube.seeds for cube in cubes])
    cell = numbers_of(np.column_stack([subject, settings]))
    seed_of_subject = numbers_of(np.column_stack([subject, seed]))
    luck = [numbers_of(np.column_stack([column, seed])) for column in settings.T]
    cells = _residual(means, cell, seed_of_subject)
    remainder = _residual(means, cell, seed_of_subject, *luck)
    parameters = Spread(cells.squares - remainder.squares, cells.df - remainder.df)
    return Spreads(parameters.of_difference, cells.of_difference, _residual(means, cell).of_difference)


def run_means(cube: Cube) -> FloatArray:
    """Mean over prompts of the mean over images, [runs]; gaps filled from runs of the same setting, else from all."""
    table = mean_over(cube.values)
    table = table[:, np.isfinite(table).any(axis=0)]
    if not np.isfinite(table).all():
        setting = numbers_of(cube.settings)
        for number in range(int(setting.max()) + 1):
            runs = np.flatnonzero(setting == number)
            cells = np.ix_(runs, np.isfinite(table[runs]).any(axis=0))
            table[cells] = without_gaps(table[cells])
    return np.asarray(without_gaps(table).mean(axis=1))


def numbers_of(labels: Labels) -> IntArray:
    """Number of each distinct row of labels, [rows, columns] -> [rows]."""
    if not labels.shape[1]:
        return np.zeros(len(labels), dtype=np.int64)
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in labels.T], axis=1)
    return np.asarray(np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1), dtype=np.int64)
