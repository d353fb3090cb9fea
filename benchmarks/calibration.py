"""How often intervals of effects hold: simulated sweeps with known effects, `dbexp.effect` beside the former rule.

    python benchmarks/calibration.py --sweeps 1000 --out FILE

Spreads are like those of the reference sweep in benchmarks/2026-11-27_reference_sweep. Coverage is the share of 95 %
intervals that hold the true effect; a false alarm is a difference called significant where there is none. The former
rule resampled prompts alone. No training, no pictures: scores are drawn from the model in
`dbexp/compare/inference/components.py`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy

from dbexp.compare.inference.effect import effect
from dbexp.compare.inference.multiple import interactions, rank

RESAMPLES = 1000  # of the former rule
VISIBLE = 0.1
"""A difference in DINO that people see, by Ruiz et al. (2023, section 4.1): how often is it called significant?"""


@dataclass(frozen=True)
class Spreads:
    """Standard deviations of what is drawn, in DINO."""

    seed: float = 0.03
    """What a seed does to all settings alike; it cancels in pairs."""
    run: float = 0.045
    """A training run's luck: setting x seed."""
    shared: float = 0.0
    """Part of the variance of `run` that a seed has at a value of the parameter in all contexts."""
    prompt: float = 0.18
    prompt_setting: float = 0.06
    """Half of its variance belongs to the value of the parameter, half to the setting."""
    picture: float = 0.1
    subject_effect: float = 0.03
    """How far the effect differs between subjects."""
    wild: float = 1.0
    """How many times larger `run` is at the second value of the parameter."""


@dataclass(frozen=True)
class Design:
    """A kind of sweep.

    Attributes:
        title: for the table.
        seeds: training seeds.
        levels: values of the parameter; the effect is that of the first step.
        contexts: combinations of another parameter.
        interaction: how much the true effect differs between the first and the last context.
        subjects: each is trained for itself; they share their prompts if `crossed`.
        prompts, images: per run.
        uneven: every other prompt has its first image alone.
        lost_runs, lost_pictures: shares that are missing, at random.
        spreads: of what is drawn.
    """

    title: str
    seeds: int = 3
    levels: int = 2
    contexts: int = 1
    interaction: float = 0.0
    subjects: int = 1
    crossed: bool = True
    prompts: int = 25
    images: int = 2
    uneven: bool = False
    lost_runs: float = 0.0
    lost_pictures: float = 0.0
    spreads: Spreads = Spreads()


def draw(design: Design, generator: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A sweep whose parameter has no effect on average over contexts.

    Returns:
        Columns of its pictures; true effect of the first step per context, [contexts], with one seed that of this seed.
    """
    s = design.spreads
    shape = (design.subjects, design.contexts, design.levels, design.seeds, design.prompts, design.images)

    def noise(deviation: float, *axes: int) -> np.ndarray:
        return deviation * generator.standard_normal([n if axis in axes else 1 for axis, n in enumerate(shape)])

    single, common = np.sqrt(1 - s.shared), np.sqrt(s.shared)
    run = noise(s.run * single, 0, 1, 2, 3)
    run += noise(s.run * common, 2, 3)
    run[:, :, 1] *= s.wild
    half = s.prompt_setting / np.sqrt(2)
    of_subject = () if design.crossed else (0,)
    values = run + noise(s.seed, 3) + noise(s.prompt, *of_subject, 4) + noise(s.picture, 0, 1, 2, 3, 4, 5)
    values += noise(half, *of_subject, 2, 4) + noise(half, 0, 1, 2, 4)
    true = design.interaction * (np.linspace(-0.5, 0.5, design.contexts) if design.contexts > 1 else np.zeros(1))
    steps = np.arange(design.levels).reshape(1, 1, -1, 1, 1, 1)
    values += steps * true.reshape(1, -1, 1, 1, 1, 1)
    if design.subjects > 1:
        values += steps * noise(s.subject_effect, 0)
    is_present = np.broadcast_to(generator.random(shape[:4])[..., None, None] >= design.lost_runs, shape)
    is_present = is_present & (generator.random(shape) >= design.lost_pictures)
    if design.uneven:
        is_present[:, :, :, :, ::2, 1:] = False
    where = np.nonzero(is_present)
    if design.seeds == 1:
        true = true + (run[:, :, 1] - run[:, :, 0]).mean(axis=0).reshape(-1)
    subject, context, level, seed, prompt, image = where
    names = prompt if design.crossed else prompt + design.prompts * subject
    columns = {"value": values[where], "rank": level, "weight": context, "seed": seed, "prompt": names, "image": image}
    return columns | {"subject": subject}, true


def former(columns: Mapping[str, np.ndarray], generator: np.random.Generator) -> tuple[float, float]:
    """Both ends of the interval before: prompts resampled within their subject, all their pairs together."""
    paired: dict[tuple[int, ...], dict[int, float]] = {}
    keys = zip(*(columns[name].tolist() for name in ("subject", "prompt", "weight", "seed", "image")), strict=True)
    for key, level, value in zip(keys, columns["rank"].tolist(), columns["value"].tolist(), strict=True):
        paired.setdefault(key, {})[level] = value
    by_subject: dict[int, dict[int, list[float]]] = {}
    for (subject, prompt, *_), values in paired.items():
        if 0 in values and 1 in values:
            by_subject.setdefault(subject, {}).setdefault(prompt, []).append(values[1] - values[0])
    draws = np.zeros(RESAMPLES)
    for prompts in by_subject.values():
        sums, counts = (np.array([f(d) for d in prompts.values()], dtype=float) for f in (sum, len))
        drawn = generator.integers(len(sums), size=(RESAMPLES, len(sums)))
        draws += sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1) / len(by_subject)
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


@dataclass
class Tally:
    """Counts over sweeps, and the sum of half widths, of which infinite ones are none."""

    sweeps: int = 0
    covered: int = 0
    alarms: int = 0
    seen: int = 0
    widths: tuple[float, ...] = ()

    def add(self, low: float, high: float, true: float, may_be_significant: bool) -> None:
        """An interval for a true effect; where it lies decides whether it would see a visible one as well."""
        self.sweeps += 1
        self.covered += low <= true <= high
        self.alarms += may_be_significant and not low <= true <= high
        self.seen += may_be_significant and not low - true <= -VISIBLE <= high - true
        self.widths += ((high - low) / 2,)

    def cells(self) -> str:
        """As in the table; the half width is the median."""
        shares = (f"{100 * count / self.sweeps:.1f}" for count in (self.covered, self.alarms, self.seen))
        return " | ".join((*shares, f".{round(1000 * float(np.median(self.widths))):03d}"))


def calibrate(design: Design, sweeps: int, seed: int, with_former: bool = True) -> tuple[Tally, Tally]:
    """The new rule and, if wanted, the former one on the same sweeps."""
    new, old = Tally(), Tally()
    for number in range(sweeps):
        generator = np.random.default_rng([seed, number])
        columns, true = draw(design, generator)
        aim = target(columns, true)
        if aim is None:
            continue
        estimate = effect(columns, "rank", 0, 1)
        new.add(estimate.low, estimate.high, aim, estimate.counts.seeds > 1)
        if with_former:
            old.add(*former(columns, generator), aim, True)
    return new, old


def compare_settings(design: Design, sweeps: int, seed: int) -> tuple[int, int, int, int]:
    """Numbers of sweeps of equal settings in which something is seen.

    Returns:
        Any setting behind the best, new and former rule; an interaction where there is none; one of `interaction`.
    """
    new = old = none = seen = 0
    for number in range(sweeps):
        generator = np.random.default_rng([seed, number])
        columns, _ = draw(replace(design, interaction=0.0), generator)
        ranked = rank(columns)
        new += any(each.is_behind for each in ranked)
        ends = [former(_between(columns, ranked[0].settings, each.settings), generator) for each in ranked[1:]]
        old += any(low > 0 or high < 0 for low, high in ends)
        if design.contexts > 1:
            none += any(each.is_significant for each in interactions(columns))
            tilt = design.interaction * columns["rank"] * columns["weight"] / (design.contexts - 1)
            seen += any(each.is_significant for each in interactions(columns | {"value": columns["value"] + tilt}))
    return new, old, none, seen


def _between(
    columns: Mapping[str, np.ndarray], best: Mapping[str, str], rival: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """The pictures of two settings, as if they were two values of `rank`."""
    is_best, is_rival = (
        (columns["rank"] == int(setting["rank"])) & (columns["weight"] == int(setting["weight"]))
        for setting in (best, rival)
    )
    mask = is_best | is_rival
    return {name: column[mask] for name, column in columns.items()} | {
        "rank": is_rival[mask].astype(int), "weight": np.zeros(mask.sum(), dtype=int),
    }  # fmt: skip


def target(columns: Mapping[str, np.ndarray], true: np.ndarray) -> float | None:
    """The mean true effect over the contexts that have a pair of runs; None where there is no pair."""
    runs = [np.unique(np.stack([columns[n][columns["rank"] == level] for n in ("weight", "subject", "seed")]), axis=1)
            for level in (0, 1)]  # fmt: skip
    paired = {tuple(run) for run in runs[0].T} & {tuple(run) for run in runs[1].T}
    return float(true[sorted({context for context, *_ in paired})].mean()) if paired else None


MAIN = (
    Design("1 seed (of this seed)", seeds=1),
    *(Design(f"{n} seeds", seeds=n) for n in (2, 3, 5)),
    *(Design(f"{n} seeds, 3 values of the parameter", seeds=n, levels=3) for n in (2, 3)),
    *(Design(f"{n} seeds, 4 contexts", seeds=n, contexts=4) for n in (2, 3, 5)),
    *(Design(f"{n} seeds, 4 contexts, interaction of .15", seeds=n, contexts=4, interaction=0.15) for n in (2, 3)),
    *(Design(f"{n} seeds, a fifth of the runs and 5 % of the pictures missing", seeds=n, lost_runs=0.2,
             lost_pictures=0.05) for n in (3, 5)),
    *(Design(f"{n} seeds, 4 contexts, a fifth of the runs and 5 % of the pictures missing", seeds=n, contexts=4,
             lost_runs=0.2, lost_pictures=0.05) for n in (2, 3)),
    *(Design(f"{n} seeds, 4 and 1 pictures a prompt", seeds=n, images=4, uneven=True) for n in (2, 3)),
    *(Design(f"{s} subjects with the same prompts, {n} seeds", subjects=s, seeds=n)
      for s, n in ((2, 3), (3, 3), (5, 2))),
    *(Design(f"{s} subjects, prompts their own, {n} seeds", subjects=s, seeds=n, crossed=False)
      for s, n in ((2, 3), (3, 3), (5, 2))),
)  # fmt: skip
STRESS = (
    *(Design(f"{n} seeds, runs 3 times wilder at one of 3 values", seeds=n, levels=3, spreads=Spreads(wild=3.0))
      for n in (2, 3, 5)),
    *(Design(f"{n} seeds, 4 contexts, {words} of a run's luck the same in all", seeds=n, contexts=4,
             spreads=Spreads(shared=share)) for share, words in ((0.5, "half"), (1.0, "all")) for n in (2, 3, 5)),
    *(Design(f"{n} seeds that do not matter", seeds=n, spreads=Spreads(run=0.0)) for n in (2, 3)),
    Design("3 seeds, 5 prompts", prompts=5),
)  # fmt: skip
SETTINGS = (
    Design("2 settings, 3 seeds"),
    Design("4 settings, 3 seeds", levels=4),
    Design("2 x 2 settings, 2 seeds", seeds=2, contexts=2, interaction=0.15),
    Design("2 x 2 settings, 5 seeds", seeds=5, contexts=2, interaction=0.15),
    Design("2 x 4 settings, 3 seeds", contexts=4, interaction=0.15),
    Design("4 x 2 settings, 2 seeds", seeds=2, levels=4, contexts=2, interaction=0.15),
)
RULE = ("covers", "false alarms", "sees .1", "half width")
HEAD = ("sweep", f"new: {RULE[0]}", *RULE[1:], f"former: {RULE[0]}", *RULE[1:])
HEAD_OF_SETTINGS = (
    "equal settings", "new: any called behind", "former: any called behind", "interaction where none is",
    "interaction of .15 seen",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file of the tables; default: print alone")
    arguments = parser.parse_args()
    started = time.perf_counter()
    lines: list[str] = []
    for title, designs in (("Sweeps as they come", MAIN), ("Where the model is strained", STRESS)):
        lines += show(f"\n## {title}\n", *head(HEAD))
        for design in designs:
            new, old = calibrate(design, arguments.sweeps, arguments.seed)
            lines += show(f"| {design.title} | {new.cells()} | {old.cells()} |")
    lines += show("\n## Several settings at once\n", *head(HEAD_OF_SETTINGS))
    for design in SETTINGS:
        counts = compare_settings(design, arguments.sweeps, arguments.seed)
        cells = [f"{100 * count / arguments.sweeps:.1f}" for count in counts]
        lines += show(f"| {design.title} | {' | '.join(cells if design.contexts > 1 else [*cells[:2], '', ''])} |")
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, SciPy {scipy.__version__}"
    lines += show(f"\n{arguments.sweeps:,} sweeps a line, {time.perf_counter() - started:.0f} s. {versions}.")
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


def head(titles: tuple[str, ...]) -> tuple[str, str]:
    """The first two lines of a table."""
    return f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"


def show(*lines: str) -> list[str]:
    """Print at once, for a run takes minutes."""
    print(*lines, sep="\n", flush=True)
    return list(lines)


if __name__ == "__main__":
    main()
