"""How often the recommended setting is the best, and what "not told apart from it" is worth: simulated sweeps.

    python -m benchmarks.calibration_recommendation --sweeps 300 --out FILE

A run has a DINO, a CLIP-T and a PRES around the true ones of its setting; luck and pictures spread as in the
reference sweep of benchmarks/2026-11-27_reference_sweep (8 settings, three seeds, 25 prompts with two pictures).
Scores, the shares that pictures have in them, and the comparison with the recommended setting are those of dbexp. The
truth of a setting is the mean score of very many runs of it. No training, no pictures.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy

from benchmarks.calibration import head, show
from dbexp.compare.inference.multiple import rank
from dbexp.evaluate.columns import RECOMMEND
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.objective import shares_of, slopes, value

COLUMNS = ("dino", "clip_t", "pres")
REFERENCE = (
    *((0.569, 0.378, 0.746), (0.395, 0.404, 0.512), (0.466, 0.410, 0.448), (0.324, 0.430, 0.334)),
    *((0.702, 0.357, 0.852), (0.606, 0.373, 0.783), (0.528, 0.389, 0.437), (0.444, 0.413, 0.428)),
)
"""DINO, CLIP-T and PRES of the settings of the reference sweep, means over its seeds."""
ENDS = {"base": {"dino": 0.081, "clip_t": 0.448, "pres": 0.233}, "real": {"dino": 0.952, "clip_t": 0.201}}
LUCK = np.array([0.054, 0.0107, 0.044])
"""Standard deviation between training runs of a setting, of DINO, CLIP-T and PRES."""
TOGETHER = np.array([[1.0, -0.69, 0.66], [-0.69, 1.0, -0.73], [0.66, -0.73, 1.0]])
"""Correlations of that luck: a run that learnt more of the subject drifts further."""
SEED = np.array([0.01, 0.009, 0.01])
PROMPT = np.array([0.14, 0.097])
PROMPT_SETTING = np.array([0.05, 0.025])
PICTURE = np.array([0.227, 0.094])
"""Of DINO and CLIP-T of a picture: what its prompt does to all, its prompt and setting, and the picture itself."""
PROMPTS, IMAGES, MANY = 25, 2, 2000


@dataclass(frozen=True)
class Kind:
    """A kind of sweep.

    Attributes:
        title: for the table.
        seeds: of each setting.
        settings: how many; drawn around the middle of the reference sweep's unless `as_reference`.
        apart: how far true columns of drawn settings lie apart, 1 for as far as those of the reference sweep.
        as_reference: its own eight.
    """

    title: str
    seeds: int
    settings: int = 8
    apart: float = 1.0
    as_reference: bool = False


def truths(kind: Kind, generator: np.random.Generator) -> np.ndarray:
    """True columns of the settings, [settings, 3]."""
    reference = np.array(REFERENCE)
    if kind.as_reference:
        return reference
    middle, spread = reference.mean(axis=0), np.cov(reference.T)
    return generator.multivariate_normal(middle, kind.apart**2 * spread, size=kind.settings)


def true_scores(true: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mean score of very many runs of each setting, [settings]; for all at once what `value` does for one run."""
    columns = true[:, None] + luck(generator, MANY)
    of = shares_of(_rows(true[0]))
    shares = [
        np.clip((columns[..., COLUMNS.index(share.column)] - share.nothing) / (share.all - share.nothing), 0, 1)
        for share in of.values()
    ]
    with np.errstate(divide="ignore"):
        means: np.ndarray = (len(shares) / sum(1 / share for share in shares)).mean(axis=1)
    return means


def _rows(columns: Sequence[float]) -> Mapping[str, Mapping[str, Estimate]]:
    rows = {row: {name: Estimate(number) for name, number in of.items()} for row, of in ENDS.items()}
    return rows | {"run": {name: Estimate(float(x)) for name, x in zip(COLUMNS, columns, strict=True)}}


def luck(generator: np.random.Generator, count: int) -> np.ndarray:
    """Of training runs, [count, 3]."""
    return generator.multivariate_normal(np.zeros(3), TOGETHER * np.outer(LUCK, LUCK), size=count)


def sweep(true: np.ndarray, seeds: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """The pictures of a sweep, with their shares of the score, as `rank` takes them."""
    settings = len(true)
    runs = true[:, None] + luck(generator, settings * seeds).reshape(settings, seeds, 3)
    runs += SEED * generator.standard_normal((seeds, 3))

    def noise(deviation: np.ndarray, *shape: int) -> np.ndarray:
        return deviation * generator.standard_normal((*shape, 2))

    pictures = noise(PICTURE, settings, seeds, PROMPTS, IMAGES) + noise(PROMPT, PROMPTS, 1)
    pictures += noise(PROMPT_SETTING, settings, 1, PROMPTS, 1) + runs[..., None, None, :2]
    runs[..., :2] = pictures.mean(axis=(2, 3))
    share = np.empty(pictures.shape[:-1])
    for place in np.ndindex(settings, seeds):
        rows = _rows(runs[place])
        rising = slopes(rows, RECOMMEND)
        weights = np.array([rising[name] for name in COLUMNS[:2]])
        share[place] = value(rows, RECOMMEND) + (pictures[place] - runs[place][:2]) @ weights
    setting, seed, prompt, image = (axis.ravel() for axis in np.indices(share.shape))
    columns = {"value": share.ravel(), "setting": setting, "seed": seed, "prompt": prompt, "image": image}
    return columns | {"subject": np.zeros_like(setting)}


@dataclass
class Tally:
    """Counts over sweeps.

    Attributes:
        right: the recommended setting is the truth's best.
        lost: of the true score, by taking it.
        among: the best is the recommended one or not told apart from it.
        alarms: some setting is called behind that truly is not.
        ties: how many are not told apart.
        sure, sure_right: sweeps that told all others apart, and those of them that are right.
    """

    right: int = 0
    lost: float = 0.0
    among: int = 0
    alarms: int = 0
    ties: int = 0
    sure: int = 0
    sure_right: int = 0

    def add(self, true: np.ndarray, columns: Mapping[str, np.ndarray]) -> None:
        """One sweep, with the true scores of its settings."""
        ranked = rank(columns)
        first = int(ranked[0].settings["setting"])
        behind = {int(each.settings["setting"]) for each in ranked if each.is_behind}
        is_right = bool(true[first] == true.max())
        ties = len(true) - 1 - len(behind)
        self.right += is_right
        self.lost += float(true.max() - true[first])
        self.among += int(true.argmax()) not in behind
        self.alarms += any(true[each] >= true[first] for each in behind)
        self.ties += ties
        self.sure += ties == 0
        self.sure_right += ties == 0 and is_right

    def cells(self, sweeps: int) -> str:
        """As in the table."""
        shares = (f"{100 * count / sweeps:.1f}" for count in (self.right, self.among, self.alarms, self.sure))
        right, among, alarms, sure = shares
        sure_right = f"{self.sure_right} of {self.sure}" if self.sure else ""
        means = f"{self.lost / sweeps:.3f}", f"{self.ties / sweeps:.1f}"
        return " | ".join((right, means[0], among, alarms, means[1], sure, sure_right))


KINDS = (
    *(Kind(f"the reference sweep's 8 settings, {n} seeds", n, as_reference=True) for n in (1, 2, 3, 5)),
    *(Kind(f"8 settings drawn as far apart, {n} seeds", n) for n in (2, 3, 5)),
    Kind("4 settings drawn as far apart, 3 seeds", 3, settings=4),
    Kind("8 settings half as far apart, 3 seeds", 3, apart=0.5),
    *(Kind(f"8 equal settings, {n} seeds", n, apart=0.0) for n in (2, 3)),
)
HEAD = (
    *(
        "sweep",
        "recommends the best",
        "mean loss of the score",
        "best is it or not told apart",
        "called behind wrongly",
    ),
    *("not told apart, mean", "all others told apart", "of these, it is the best"),
)


def calibrate(kind: Kind, sweeps: int, seed: int) -> Tally:
    """Many sweeps of a kind."""
    tally = Tally()
    for number in range(sweeps):
        generator = np.random.default_rng([seed, number])
        true = truths(kind, generator)
        tally.add(true_scores(true, np.random.default_rng(seed)), sweep(true, kind.seeds, generator))
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=300, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file of the table; default: print alone")
    arguments = parser.parse_args()
    started = time.perf_counter()
    lines = show(*head(HEAD))
    for kind in KINDS:
        tally = calibrate(kind, arguments.sweeps, arguments.seed)
        lines += show(f"| {kind.title} | {tally.cells(arguments.sweeps)} |")
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}"
    lines += show(f"\n{arguments.sweeps:,} sweeps a line, {time.perf_counter() - started:.0f} s. {versions}.")
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
