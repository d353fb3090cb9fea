"""What halving costs on the reference sweep, and who wins: every judgement is measured once, races are replayed.

    python benchmarks/halving_replay.py SWEEP --folder kept     # SWEEP: one of that kind, its runs included

The sweep is rank 4 and 16, prior weight 0 and 1, constant and polynomial rate, three seeds: 24 runs of 400 steps that
went to their end in SWEEP. Here they are trained again, in packs, to each rung, in an empty store, and judged there by
DINO of four images, by the recommendation of four images and four class images, and by the loss on fixed noise. With
these figures a race of any of the runs can be replayed: who stops where (Optuna's pruner, as in a race), what the race
costs in processor time, and where its winner stands among the runs of SWEEP. A run is trained no further than the last
of the races takes it. Processor time, not seconds, since it holds on a machine with other work: training is that of the
packs, shared by rows; judging that of each judgement. With the images at the end it is rows through the denoiser,
forward, a row of a training step as three. Class images to train on, images of the base model and backbones are the
same with and without a race and are not counted; nor is that the survivors of a race fill a pack less well.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dbexp import compose
from dbexp.pipeline import halving, sweep
from dbexp.pipeline.plan import PlannedRun
from dbexp.train import packing
from hydra_plugins.dbexp_pack import _halving
from hydra_plugins.dbexp_pack._settings import HalvingConf

SWEPT = {"lora.rank": (4, 16), "prior.weight": (0, 1), "lr_schedule": ("constant", "polynomial"), "seed": (1, 2, 3)}
JUDGES = ("dino", "recommend", "loss")
MOST_LANES = 8
FINAL_IMAGES = (2, 50)
"""Images per prompt and class images of the final evaluation in SWEEP."""


@dataclass(frozen=True)
class Race:
    """Some runs and who judges them."""

    title: str
    judge: str
    runs: tuple[int, ...]

    @property
    def direction(self) -> str:
        return "minimize" if self.judge == "loss" else "maximize"


class Measured:
    """What was measured, in a file, so that it goes on where it was cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._of: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, *key: Any) -> Any:
        return self._of.get(json.dumps(key))

    def put(self, value: Any, *key: Any) -> None:
        self._of[json.dumps(key)] = value
        self._path.write_text(json.dumps(self._of, indent=0))
        print(json.dumps(key), value, flush=True)

    def items(self, kind: str) -> Iterator[tuple[list[Any], Any]]:
        for key, value in self._of.items():
            if (parts := json.loads(key))[0] == kind:
                yield parts[1:], value


def planned(store: Path) -> list[PlannedRun]:
    """The runs of the sweep, in its order."""
    runs = []
    for number, values in enumerate(itertools.product(*SWEPT.values())):
        words = tuple(f"{name}={value}" for name, value in zip(SWEPT, values, strict=True))
        # as the built-in model's defaults were when SWEEP was made
        rest = ("lora=attention", "train.steps=400", "sample.guidance_scale=3.0")
        rest += (f"sample.images_per_prompt={FINAL_IMAGES[0]}", f"sample.class_images={FINAL_IMAGES[1]}")
        config = compose([*words, *rest, "tracking.mode=disabled", f"store={store}"])
        runs.append(PlannedRun(number, words, words, config))
    return runs


def races(runs: Sequence[PlannedRun]) -> list[Race]:
    """One of each seed's runs, and one of all, for each judge."""
    every = tuple(run.number for run in runs)
    of_seed = {seed: tuple(run.number for run in runs if run.config.seed == seed) for seed in SWEPT["seed"]}
    groups = {f"seed {seed}": numbers for seed, numbers in of_seed.items()} | {"all 24": every}
    return [Race(title, judge, numbers) for judge in JUDGES for title, numbers in groups.items()]


def rows_of(run: PlannedRun, steps: int) -> int:
    """Rows through the denoiser of so many steps of training."""
    return steps * run.config.train.batch_size * (2 if run.config.prior.weight > 0 else 1)


def train(runs: Sequence[PlannedRun], step: int, measured: Measured) -> None:
    """Train some runs to a rung, in packs."""
    at = [replace(run, config=halving.until(run.config, step)) for run in runs]
    for pack in packing.packs([run.config for run in at], MOST_LANES):
        members = [at[index] for index in pack]
        key = ("train", step, [run.number for run in members])
        if measured.get(*key) is None:
            started = time.process_time()
            sweep.train_pack(members, MOST_LANES, keep=True)
            measured.put(time.process_time() - started, *key)


def judge(run: PlannedRun, step: int, by: str, measured: Measured) -> float:
    """What a run is worth at a rung."""
    if measured.get("judge", step, run.number, by) is None:
        config = halving.until(run.config, step)
        config = config if by == "loss" else replace(config, objective=[by])
        judging = halving.Judging("loss" if by == "loss" else "draw")
        started = time.process_time()
        judgement, _ = halving.judged(replace(run, config=config), judging)
        seconds = time.process_time() - started
        measured.put([judgement.value, seconds, judgement.passes], "judge", step, run.number, by)
    return float(measured.get("judge", step, run.number, by)[0])


def replay(runs: Sequence[PlannedRun], rungs: Sequence[int], measured: Measured) -> dict[Race, dict[int, int]]:
    """All races, rung by rung: run -> the step at which it stopped, for those that did."""
    settings = HalvingConf(rungs=list(rungs))
    stops: dict[Race, dict[int, int]] = {race: {} for race in races(runs)}
    values: dict[Race, dict[int, list[float]]] = {race: {n: [] for n in race.runs} for race in stops}
    for place, step in enumerate(rungs):
        racing = {race: [n for n in race.runs if n not in stops[race]] for race in stops}
        wanted = sorted({number for numbers in racing.values() for number in numbers})
        train([runs[number] for number in wanted], step, measured)
        for race, numbers in racing.items():
            for number in numbers:
                values[race][number].append(judge(runs[number], step, race.judge, measured))
            leaving = _halving.stopped(values[race], place, settings, race.direction)
            stops[race] |= dict.fromkeys(leaving, step)
    return stops


def finished(folder: Path) -> dict[int, dict[str, float]]:
    """Run -> its DINO and recommendation at the end of the sweep that went to its end."""
    with (folder / "recommendation.csv").open(newline="") as file:
        return {
            int(row["job"]): {name: float(row[name]) for name in ("dino", "recommend")} for row in csv.DictReader(file)
        }


def seconds_per_row(runs: Sequence[PlannedRun], rungs: Sequence[int], measured: Measured) -> float:
    """Processor seconds of training a row, over all packs that were measured."""
    seconds = rows = 0.0
    for (step, numbers), value in measured.items("train"):
        before = max((rung for rung in rungs if rung < step), default=0)
        seconds, rows = seconds + value, rows + sum(rows_of(runs[n], step - before) for n in numbers)
    return seconds / rows


def passes(
    runs: Sequence[PlannedRun], race: Race, rungs: Sequence[int], stops: dict[int, int], measured: Measured
) -> int:
    """Rows through the denoiser, forward, of a race with its judgements and the images at its end."""
    steps = {n: stops.get(n, runs[n].config.train.steps) for n in race.runs}
    training = sum(3 * rows_of(runs[n], steps[n]) for n in race.runs)
    judging = sum(
        measured.get("judge", step, n, race.judge)[2] for n in race.runs for step in rungs if step <= steps[n]
    )
    return training + judging + sum(halving.final_passes(runs[n].config) for n in race.runs if n not in stops)


def report(
    runs: Sequence[PlannedRun], rungs: Sequence[int], ends: dict[int, dict[str, float]], measured: Measured
) -> str:
    """The table, in Markdown."""
    lines = [
        "| judge | runs | training | judging | training and judging | with final images | wins full / halved "
        "| same setting | lost of the objective, of its spread |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    per_row = seconds_per_row(runs, rungs, measured)
    for race, stops in replay(runs, rungs, measured).items():
        whole = sum(per_row * rows_of(runs[n], runs[n].config.train.steps) for n in race.runs)
        training = sum(per_row * rows_of(runs[n], stops.get(n, runs[n].config.train.steps)) for n in race.runs)
        judging = sum(
            measured.get("judge", step, n, by)[1]
            for n in race.runs for step in rungs if step <= stops.get(n, rungs[-1])
            for by in (("dino", "recommend") if race.judge == "recommend" else (race.judge,))
        )  # fmt: skip
        left = [n for n in race.runs if n not in stops]
        images = passes(runs, race, rungs, stops, measured) / passes(runs, race, (), {}, measured)
        objective = "dino" if race.judge == "loss" else race.judge
        best, won = (max(of, key=lambda n: ends[n][objective]) for of in (race.runs, left))
        spread = [ends[n][objective] for n in race.runs]
        parts = (training / whole, judging / whole, (training + judging) / whole, images)
        shares = " | ".join(f"{100 * of:.0f} %" for of in parts)
        same = runs[best].overrides[:3] == runs[won].overrides[:3]
        lines.append(
            f"| {race.judge} | {race.title} | {shares} | {best} / {won} | {'yes' if same else 'no'} "
            f"| {max(spread) - ends[won][objective]:.3f} of {max(spread) - min(spread):.3f} |"
        )
    judged = [value[1] for _, value in measured.items("judge")]
    lines.append(
        f"\nProcessor seconds: {1000 * per_row:.1f} ms a row of training, {sum(judged) / len(judged):.2f} a judgement."
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of the sweep that went to its end")
    parser.add_argument("--folder", type=Path, required=True, help="of the measurements and their store")
    parser.add_argument("--rungs", default="50,100,200")
    settings = parser.parse_args()
    rungs = [int(step) for step in settings.rungs.split(",")]
    settings.folder.mkdir(parents=True, exist_ok=True)
    measured = Measured(settings.folder / "measured.json")
    runs = planned((settings.folder / "store").resolve())
    replay(runs, rungs, measured)
    print(report(runs, rungs, finished(settings.sweep), measured))


if __name__ == "__main__":
    main()
