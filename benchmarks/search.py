"""What a search finds of a grid, and what it costs: by Optuna alone, and with runs that are stopped early.

    python benchmarks/search.py --folder kept                       # three training seeds, three seeds of the sampler
    python benchmarks/search.py --folder kept --seeds 1 --report    # the tables of what is there, nothing is run

The grid is rank 4 and 16, three rates, prior weight 0 and 1, constant and cosine rate: 24 settings of the built-in
model on a subject that no default was chosen on. All of it is trained once, rung by rung, into one store. Then the grid
races by each of Optuna's pruners, and `hydra/sweeper=search` looks for its best setting, for DINO and for the
recommendation, with every run to its end and with races in its batches: real commands, which find in the store what
they ask for. What they ask for is what costs: rows through the denoiser, forward, a row of a training step as three, of
every setting once, however often a search proposes it. Images of the base model, and of the class to train on, are the
same for all, and not counted.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dbexp import compose
from dbexp.pipeline import halving
from dbexp.pipeline.plan import PlannedRun
from hydra_plugins.dbexp_pack import _halving
from hydra_plugins.dbexp_pack._settings import HalvingConf

ROOT = Path(__file__).resolve().parents[1]
GRID = {
    "lora.rank": ("4", "16"),
    "train.lr": ("5e-4", "1e-3", "2e-3"),
    "prior.weight": ("0.0", "1.0"),
    "lr_schedule": ("constant", "cosine"),
}
STEPS, RUNGS, BATCH, TRIALS = 200, (25, 50, 100), 8, 24
IMAGES, CLASS_IMAGES, SAMPLING_STEPS = 1, 20, 8
PROMPTS = 25
PRUNERS = ("none", "successive", "hyperband", "median")
SEARCHES = [("dino", "none"), ("dino", "successive"), ("recommend", "none"), ("recommend", "successive")]
SEARCHES += [("dino", "hyperband"), ("dino", "median")]

Point = tuple[str | float, ...]
"""The values of a setting, in the order of GRID."""


@dataclass
class Asked:
    """What a sweep asked for.

    Attributes:
        steps: setting -> optimizer steps that it was trained to.
        finished: settings that went to their end, and whose images were drawn.
        judged: (setting, step) -> rows forward.
    """

    steps: dict[Point, int] = field(default_factory=dict)
    finished: set[Point] = field(default_factory=set)
    judged: dict[tuple[Point, int], int] = field(default_factory=dict)

    def training(self) -> int:
        """Rows forward."""
        return sum(3 * steps * (2 if float(point[2]) > 0 else 1) for point, steps in self.steps.items())

    def judging(self) -> int:
        """Rows forward."""
        return sum(self.judged.values())

    def drawing(self) -> int:
        """Rows forward; every image is guided."""
        return len(self.finished) * (PROMPTS * IMAGES + CLASS_IMAGES) * SAMPLING_STEPS * 2


def fixed(folder: Path, seed: int) -> list[str]:
    """What all runs share."""
    words = ["model=storybook", "dataset=storybook/dog2", f"seed={seed}", f"train.steps={STEPS}", "tracking=disabled"]
    words += [f"sample.images_per_prompt={IMAGES}", f"sample.class_images={CLASS_IMAGES}"]
    return [*words, f"sample.steps={SAMPLING_STEPS}", f"store={folder.resolve() / f'store{seed}'}"]


def dbexp(folder: Path, name: str, *words: str) -> None:
    """Run a sweep, unless it is there."""
    if (folder / name / "results.md").exists() and (folder / name / "ended").exists():
        return
    command = [sys.executable, "-m", "dbexp", "-m", *words, f"hydra.sweep.dir={name}"]
    with (folder / f"{name.replace('/', '-')}.log").open("w") as log:
        subprocess.run(
            command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=log, stderr=log
        )
    (folder / name / "ended").touch()
    print(name, flush=True)


def fill(folder: Path, seed: int) -> None:
    """Train the grid to each rung, and judge it there, so that a race finds what it asks for. Judgements are kept."""
    runs: list[PlannedRun] = []
    judged: dict[int, list[tuple[float, int]]] = {}
    for number, values in enumerate(itertools.product(*GRID.values())):
        words = tuple(f"{name}={value}" for name, value in zip(GRID, values, strict=True))
        config = compose([*words, *[word.replace("tracking=", "tracking.mode=") for word in fixed(folder, seed)]])
        runs.append(PlannedRun(number, words, words, config))
    for step in RUNGS:
        at = [PlannedRun(r.number, r.overrides, r.differs, halving.until(r.config, step)) for r in runs]
        for number, (judgement, _) in halving.reach(at, halving.Judging("loss"), BATCH).items():
            judged.setdefault(number, []).append((judgement.value, judgement.passes))
        print("seed", seed, "step", step, flush=True)
    (folder / f"seed{seed}.json").write_text(json.dumps(judged))


def races(pruner: str) -> list[str]:
    """Words of the command line."""
    if pruner == "none":
        return []
    rungs = ",".join(map(str, RUNGS))
    return [f"hydra.launcher.halving.rungs=[{rungs}]", f"hydra.launcher.halving.pruner={pruner}"]


def run(folder: Path, seed: int, samplers: Sequence[int]) -> None:
    """The grid, its races and the searches of a training seed."""
    common = [*fixed(folder, seed), f"hydra.launcher.size={BATCH}"]
    if not (folder / f"seed{seed}.json").exists():
        fill(folder, seed)
    grid = [f"{name}={','.join(values)}" for name, values in GRID.items()]
    space = [f"{name}=choice({','.join(values)})" for name, values in GRID.items()]
    dbexp(folder, f"seed{seed}/grid", *grid, *common)
    for pruner in PRUNERS[1:]:
        dbexp(folder, f"seed{seed}/race-{pruner}", *grid, *common, "objective=dino", *races(pruner))
    search = ["hydra/sweeper=search", "hydra.sweeper.storage=null", "hydra.sweeper.study_name=null"]
    search += [f"hydra.sweeper.n_trials={TRIALS}", f"hydra.sweeper.n_jobs={BATCH}"]
    for objective, pruner in SEARCHES:
        for sampler in samplers:
            name = f"seed{seed}/{objective}-{pruner}-{sampler}"
            own = [f"objective={objective}", f"hydra.sweeper.sampler.seed={sampler}"]
            dbexp(folder, name, *search, *space, *common, *own, *races(pruner))


# -- races of the grid in another order --------------------------------------------------------------------------------


def replayed(
    judged: Mapping[int, Sequence[tuple[float, int]]],
    of: Mapping[int, Point],
    pruner: str,
    batch: int,
    order: Sequence[int],
) -> Asked:
    """A race of the grid in some order, in batches, by the judgements that are known of all of it.

    A decision is a function of the values of a batch and of the numbers of its jobs, by which Hyperband gives brackets.
    """
    total = Asked()
    for first in range(0, len(order), batch):
        racing = dict(enumerate(order[first : first + batch], start=first))
        seen: dict[int, list[float]] = {job: [] for job in racing}
        steps = dict.fromkeys(racing, STEPS)
        for place, step in enumerate(RUNGS):
            left = [job for job in racing if steps[job] == STEPS]
            for job in left:
                value, passes = judged[racing[job]][place]
                seen[job].append(value)
                total.judged[of[racing[job]], step] = passes
            settings = HalvingConf(rungs=list(RUNGS), pruner=pruner)
            steps |= dict.fromkeys(_halving.stopped(seen, place, settings, "minimize"), step)
        total.steps |= {of[racing[job]]: steps[job] for job in racing}
        total.finished |= {of[racing[job]] for job in racing if steps[job] == STEPS}
    return total


def replays(folder: Path, seed: int, orders: int) -> Iterator[str]:
    """Rows of a table: races of all at once and in batches, over random orders of the grid."""
    grid = folder / f"seed{seed}/grid"
    of, whole, values = points(grid), asked(grid), ends(grid)["dino"]
    judged = {int(number): each for number, each in json.loads((folder / f"seed{seed}.json").read_text()).items()}
    best, worst = max(values.values()), min(values.values())
    for pruner, batch in itertools.product(PRUNERS[1:], (len(of), BATCH)):
        parts = []
        for number in range(orders):
            order = sorted(of)
            random.Random(number).shuffle(order)
            parts.append(replayed(judged, of, pruner, batch, order))
        shared = [shares(part, whole) for part in parts]
        lost = [best - max(values[point] for point in part.finished) for part in parts]
        least, most = (f"{100 * end(share[0] for share in shared):.0f}" for end in (min, max))
        images = sum(share[2] for share in shared) / orders
        kept = sum(each == 0 for each in lost)
        yield (
            f"| {seed} | {pruner} | {batch} | {least} to {most} % | {100 * images:.0f} % | {kept} of {orders} "
            f"| {sum(lost) / orders:.3f}, at most {max(lost):.3f}, of {best - worst:.3f} |"
        )


# -- what is there -----------------------------------------------------------------------------------------------------


def rows(sweep: Path) -> list[dict[str, str]]:
    """results.csv, by number of the job."""
    with (sweep / "results.csv").open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["job"]))


def point_of(overrides: Sequence[str]) -> Point:
    """The setting of a run."""
    words = dict(word.split("=", 1) for word in overrides)
    return (*(float(words[name]) for name in list(GRID)[:3]), words["lr_schedule"])


def points(sweep: Path) -> dict[int, Point]:
    """Number of a run -> its setting."""
    return {
        int(path.parent.name): point_of(json.loads(path.read_text())["overrides"])
        for path in sweep.glob("*/result.json")
    }


def ends(grid: Path) -> dict[str, dict[Point, float]]:
    """Objective -> setting -> its value at the end."""
    of = points(grid)
    with (grid / "recommendation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return {name: {of[int(row["job"])]: float(row[name]) for row in table} for name in ("dino", "recommend")}


def asked(sweep: Path, first: int | None = None) -> Asked:
    """What the first jobs of a sweep asked for; None: all."""
    path = sweep / "halving.json"
    records = json.loads(path.read_text()) if path.exists() else []
    raced = {each["number"]: each for record in records for each in record["runs"]}
    total = Asked()
    for number, point in points(sweep).items():
        if first is not None and number >= first:
            continue
        record = raced.get(number, {"stopped": None, "judgements": []})
        steps = record["stopped"] or STEPS
        total.steps[point] = max(steps, total.steps.get(point, 0))
        total.judged |= {(point, each["step"]): each["passes"] for each in record["judgements"]}
        if record["stopped"] is None:
            total.finished.add(point)
    return total


def shares(part: Asked, whole: Asked) -> tuple[float, float, float]:
    """Of a grid's training: training and judging, judging alone; of its training and images: all three."""
    training = part.training() + part.judging()
    with_images = (training + part.drawing()) / (whole.training() + whole.drawing())
    return training / whole.training(), part.judging() / whole.training(), with_images


def chance(values: Mapping[Point, float], count: int) -> float:
    """What the best of so many different settings falls short of the best of all, on average over all draws of them."""
    best = sorted(values.values(), reverse=True)
    ways = math.comb(len(best), count)
    return sum(
        (best[0] - value) * math.comb(len(best) - place - 1, count - 1) / ways for place, value in enumerate(best)
    )


def line(title: str, part: Asked, whole: Asked, values: Mapping[Point, float]) -> list[str]:
    """A row of a table, as cells."""
    both, judging, images = shares(part, whole)
    won = max(part.finished, key=lambda point: values[point])
    place = sorted(values.values(), reverse=True).index(values[won]) + 1
    best, worst = max(values.values()), min(values.values())
    cells = [
        title,
        f"{len(part.steps)}, {len(part.finished)}",
        *(f"{100 * of:.0f} %" for of in (both, judging, images)),
    ]
    return [*cells, str(place), f"{best - values[won]:.3f} of {best - worst:.3f}"]


def lines(folder: Path, seeds: Sequence[int], samplers: Sequence[int]) -> Iterator[list[str]]:
    """Rows of the table."""
    for seed in seeds:
        here = folder / f"seed{seed}"
        if not (here / "grid/ended").exists():
            continue
        whole, by = asked(here / "grid"), ends(here / "grid")
        for pruner in PRUNERS[1:]:
            if (here / f"race-{pruner}/ended").exists():
                yield line(f"{seed} | grid | dino | {pruner} | –", asked(here / f"race-{pruner}"), whole, by["dino"])
        for (objective, pruner), sampler in itertools.product(SEARCHES, samplers):
            sweep = here / f"{objective}-{pruner}-{sampler}"
            if (sweep / "ended").exists():
                for first in range(BATCH, TRIALS + 1, BATCH):
                    part = asked(sweep, first)
                    title = f"{seed} | search {sampler} | {objective} | {pruner} | {first}"
                    by_chance = chance(by[objective], len(part.steps))
                    yield [*line(title, part, whole, by[objective]), f"{by_chance:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the sweeps and their stores")
    parser.add_argument("--seeds", default="1,2,3", help="of the trainings")
    parser.add_argument("--samplers", default="1,2,3", help="seeds of Optuna's sampler")
    parser.add_argument("--report", action="store_true", help="only the tables of what is there")
    parser.add_argument("--orders", type=int, default=20, help="of the grid in which its races are replayed")
    settings = parser.parse_args()
    seeds, samplers = ([int(word) for word in words.split(",")] for words in (settings.seeds, settings.samplers))
    settings.folder.mkdir(parents=True, exist_ok=True)
    for seed in [] if settings.report else seeds:
        run(settings.folder, seed, samplers)
    print(
        "| training seed | what | objective | pruner | trials | settings tried, to their end | training and judging ",
        end="",
    )
    print("| of which judging | with final images | place | lost, of the spread | as many at random lose |")
    print("|---" * 12 + "|")
    for cells in lines(settings.folder, seeds, samplers):
        print("| " + " | ".join(cells) + (" |" if len(cells) == 8 else " | – |"))
    print(
        "\n| training seed | pruner | runs in a race | training and judging, least to most | with final images, mean ",
        end="",
    )
    print("| best kept | lost on average |")
    print("|---" * 7 + "|")
    for seed in seeds:
        if (settings.folder / f"seed{seed}.json").exists() and (settings.folder / f"seed{seed}/grid/ended").exists():
            print("\n".join(replays(settings.folder, seed, settings.orders)), flush=True)


if __name__ == "__main__":
    main()
