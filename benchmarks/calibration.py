"""How often intervals of effects hold: simulated sweeps with known effects, the rule of `dbexp.effect` beside the former one.

    python benchmarks/calibration.py --sweeps 1000 --out benchmarks/2026-11-27_calibration.md

Spreads are like those of the reference sweep (multirun/reference). Coverage is the share of 95 % intervals that hold the
true effect; a false alarm is an interval without zero where the true effect is zero. The former rule resampled prompts
alone. No training, no pictures: scores are drawn from the model in `dbexp/compare/components.py`.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dbexp.compare.inference import EffectEstimate, effect

RESAMPLES = 1000  # of the former rule
EFFECT = 0.05
"""True effect of a step, DINO: half of what Ruiz et al. (2023, section 4.1) call visible."""


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
    lost_runs: float = 0.0
    lost_pictures: float = 0.0
    spreads: Spreads = Spreads()  # noqa: RUF009 (frozen)


def draw(design: Design, size: float, generator: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """A sweep.

    Args:
        design: of the sweep.
        size: mean effect of every step.
        generator: of the noise.

    Returns:
        Columns of its pictures; true effect of the first step per context, [contexts].
    """
    s = design.spreads
    shape = (design.subjects, design.contexts, design.levels, design.seeds, design.prompts, design.images)

    def noise(deviation: float, *axes: int) -> np.ndarray:
        return deviation * generator.standard_normal([n if axis in axes else 1 for axis, n in enumerate(shape)])

    own, shared = np.sqrt(1 - s.shared), np.sqrt(s.shared)
    run = noise(s.run * own, 0, 1, 2, 3)
    run += noise(s.run * shared, 2, 3)
    run[:, :, 1] *= s.wild
    half = s.prompt_setting / np.sqrt(2)
    of_subject = () if design.crossed else (0,)
    values = run + noise(s.seed, 3) + noise(s.prompt, *of_subject, 4) + noise(s.picture, 0, 1, 2, 3, 4, 5)
    values += noise(half, *of_subject, 2, 4) + noise(half, 0, 1, 2, 4)
    true = size + design.interaction * np.linspace(-0.5, 0.5, design.contexts) if design.contexts > 1 else np.array([size])
    steps = np.arange(design.levels).reshape(1, 1, -1, 1, 1, 1)
    values += steps * true.reshape(1, -1, 1, 1, 1, 1)
    if design.subjects > 1:
        values += steps * noise(s.subject_effect, 0)
    kept = np.broadcast_to(generator.random(shape[:4])[..., None, None] >= design.lost_runs, shape)
    kept = kept & (generator.random(shape) >= design.lost_pictures)
    where = np.nonzero(kept)
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
    """Counts over sweeps: intervals that hold the truth, that leave out zero, and their mean half width."""

    sweeps: int = 0
    covered: int = 0
    alarms: int = 0
    width: float = 0.0

    def add(self, low: float, high: float, true: float, is_significant: bool) -> None:
        self.sweeps += 1
        self.covered += low <= true <= high
        self.alarms += is_significant
        self.width += (high - low) / 2


def calibrate(design: Design, sweeps: int, size: float, seed: int, subjects: str = "sample") -> dict[str, Tally]:
    """Rule -> what became of the sweeps, each with one step of the parameter."""
    tallies: dict[str, Tally] = {"new": Tally(), "former": Tally()}
    for number in range(sweeps):
        generator = np.random.default_rng([seed, number])
        columns, true = draw(design, size, generator)
        try:
            estimate = effect(columns, "rank", 0, 1, subjects=subjects)
        except ValueError:
            continue  # no pair of runs is left
        aim = target(columns, true)
        tallies["new"].add(estimate.low, estimate.high, aim, estimate.is_significant)
        low, high = former(columns, generator)
        tallies["former"].add(low, high, aim, low > 0 or high < 0)
    return tallies


def target(columns: Mapping[str, np.ndarray], true: np.ndarray) -> float:
    """The mean true effect over the contexts that have a pair of runs."""
    runs = [np.unique(np.stack([columns[n][columns["rank"] == level] for n in ("weight", "subject", "seed")]), axis=1)
            for level in (0, 1)]  # fmt: skip
    paired = {tuple(run) for run in runs[0].T} & {tuple(run) for run in runs[1].T}
    return float(true[sorted({context for context, *_ in paired})].mean())
