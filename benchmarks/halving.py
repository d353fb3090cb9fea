"""What halving saves, and whether the same setting wins: a sweep with it and without, again for other seeds.

    python benchmarks/halving.py                          # 8 settings of the built-in model, three seeds
    python benchmarks/halving.py --steps 200 --rungs 25,50,100 --judges draw,loss --folder kept

For every seed the sweep runs once without halving and once with each judge, in a store each, so that nothing is found;
with --folder what is there from before is not run again, and has no seconds. The cost is what the race itself counts
(halving.json): rows through the denoiser forward, a row of a training step as three, with the images of the final
evaluation of those that went on. Seconds are those of the whole command.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SWEPT = ["lora.rank=4,16", "train.lr=5e-4,2e-3", "prior.weight=0,1"]


def dbexp(folder: Path, name: str, *words: str) -> float | None:
    """Seconds of a sweep; None: it was there already."""
    if (folder / name / "results.md").exists():
        return None
    words = (*words, f"hydra.sweep.dir={name}", f"store=store-{name}")
    started = time.perf_counter()
    command = [sys.executable, "-m", "dbexp", *words]
    subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    return time.perf_counter() - started


def rows(sweep: Path) -> list[dict[str, str]]:
    """results.csv, best first."""
    with (sweep / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def one_seed(folder: Path, seed: int, judge: str, settings: argparse.Namespace) -> dict[str, Any]:
    """A seed's sweep without halving and with one judge."""
    common = ["-m", "model=storybook", "tracking=disabled", f"objective={settings.objective}", f"seed={seed}"]
    common += [f"train.steps={settings.steps}", f"sample.images_per_prompt={settings.images}", *settings.swept]
    common += [f"sample.steps={settings.sampling_steps}"]
    rungs = ["hydra.launcher.halving.rungs=[" + settings.rungs + "]", f"hydra.launcher.halving.judge={judge}"]
    rungs += [f"hydra.launcher.halving.prompts={settings.prompts}", f"hydra.launcher.halving.factor={settings.factor}"]
    names = {"full": f"full{seed}", "halved": f"{judge}{seed}"}
    seconds = {"full": dbexp(folder, names["full"], *common), "halved": dbexp(folder, names["halved"], *common, *rungs)}
    (race,) = json.loads((folder / names["halved"] / "halving.json").read_text())
    full, halved = rows(folder / names["full"]), rows(folder / names["halved"])
    place = [row["job"] for row in full].index(halved[0]["job"]) + 1
    passes = race["passes"]
    score = [float(table[0][settings.objective]) for table in (full, halved)]
    training = passes["training"] + passes["judging"]
    return {
        "judge": judge,
        "seed": seed,
        "training_share": training / passes["training_all"],
        "judging_share": passes["judging"] / passes["training_all"],
        "whole_share": (training + passes["drawing"]) / (passes["training_all"] + passes["drawing_all"]),
        "seconds": seconds,
        "winner_full": full[0]["job"],
        "winner_halved": halved[0]["job"],
        "place_in_full": place,
        "lost": score[0] - score[1],
        "spread": max(float(row[settings.objective]) for row in full)
        - min(float(row[settings.objective]) for row in full),
    }


def table(results: list[dict[str, Any]]) -> str:
    """In Markdown."""
    lines = [
        "| judge | seed | training and judging | of which judging | with final images | seconds | wins full / halved "
        "| its place in full | lost of the objective, of its spread |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in results:
        seconds = [f"{value:.0f}" if value else "–" for value in (one["seconds"]["halved"], one["seconds"]["full"])]
        lines.append(
            f"| {one['judge']} | {one['seed']} | {100 * one['training_share']:.0f} % "
            f"| {100 * one['judging_share']:.0f} % | {100 * one['whole_share']:.0f} % | {seconds[0]} / {seconds[1]} "
            f"| {one['winner_full']} / {one['winner_halved']} | {one['place_in_full']} "
            f"| {one['lost']:.3f} of {one['spread']:.3f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rungs", default="50,100,200")
    parser.add_argument("--judges", default="draw", help="draw, loss or both, with a comma")
    parser.add_argument("--folder", type=Path, help="keep the sweeps there")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--factor", type=int, default=2)
    parser.add_argument("--images", type=int, default=1, help="images per prompt of the final evaluation")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--objective", default="dino")
    parser.add_argument("swept", nargs="*", help="what the sweep varies", default=SWEPT)
    settings = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in map(int, settings.seeds.split(",")):
            for judge in settings.judges.split(","):
                results.append(one_seed(folder.resolve(), seed, judge, settings))
                print(json.dumps(results[-1]), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
