"""A sweep of eight runs with dbexp against a plain script run eight times; then a ninth run, and the sweep again.

    python benchmarks/sweep.py --model storybook
    python benchmarks/sweep.py --model random --runs 2 train.steps=10 sample.class_images=8   # a look whether it works

Everything runs in processes of its own, one after the other, on the same machine in one go: ratios count, absolute
times drift. Every command starts with an empty store, except those whose point is that it is not. The scores of both
ways are printed side by side: their noise differs, so they agree only as far as two seeds do. All figures come as JSON,
the ratios as a table in Markdown after it.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from dbexp import api, models
from dbexp.core import provenance
from dbexp.core.store import Store

ROOT = Path(__file__).resolve().parents[1]
SWEPT = {"lora.rank": ("4", "16"), "prior.weight": ("0", "1"), "seed": ("1", "2")}
NINTH = ["lora.rank=8", "prior.weight=1", "seed=1"]
TRAINING_ALONE = ["sample.images_per_prompt=1", "sample.steps=1", "sample.class_images=0", "sample.base=false"]
"""The training is all that is wanted of these runs."""
COLUMNS = ("dino", "clip_i", "clip_t", "pres", "div")


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    """Seconds that a command takes, start of the interpreter included, and what it prints on standard output."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    process = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{process.stderr[-3000:]}")
    return seconds, process.stdout


def dbexp(folder: Path, *words: str) -> float:
    """Seconds of a dbexp command."""
    return timed([sys.executable, "-m", "dbexp", *words], folder)[0]


def training(folder: Path) -> list[float]:
    """Seconds that each job of a sweep trained, in a pack or alone; without loading, encoding and class images."""
    return [json.loads(path.read_text())["seconds"] for path in sorted(folder.glob("*/train/train.json"))]


def compared(summary: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What is set against what, and the seconds of both."""
    seconds, count = summary["seconds"], summary["runs"]
    sweep, packed = seconds["sweep"], seconds["sweep_training"]
    loops = sum(stages["train"] for stages in summary["plain_stages"])
    return [
        (f"{count} plain scripts / sweep of {count}", sum(seconds["plain"]), sweep),
        ("their training loops / training packed", loops, packed),
        ("training one by one / training packed", sum(seconds["solo_training"]), packed),
        ("one run more / a run of the sweep", seconds["ninth"], sweep / count),
        ("one run more / the same with an empty store", seconds["ninth"], seconds["alone"]),
        ("the finished sweep again / the sweep", seconds["again"], sweep),
        ("the finished sweep again, a job / a second", seconds["again"] / count, 1.0),
    ]


def table(summary: dict[str, Any]) -> str:
    """The ratios in Markdown."""
    head = f"{summary['model']}, {summary['unet_parameters'] / 1e6:.2f} M parameters, {summary['threads']} thread(s)"
    lines = [f"| {head} | ratio | seconds |", "|---|---|---|"]
    lines += [f"| {title} | {a / b:.2f} | {a:.2f} / {b:.2f} |" for title, a, b in compared(summary)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook", help="option of the group `model`")
    parser.add_argument("--runs", type=int, default=8, choices=(2, 4, 8))
    parser.add_argument("--caches", action="store_true", help="let the plain script encode pictures and prompts once")
    parser.add_argument("overrides", nargs="*", help="more parameters, the same for every run")
    arguments = parser.parse_args()
    common = [f"model={arguments.model}", *arguments.overrides]
    swept = {
        name: values if arguments.runs >= 2 << at else values[:1] for at, (name, values) in enumerate(SWEPT.items())
    }
    runs = [
        [f"{name}={value}" for name, value in zip(swept, values, strict=True)]
        for values in itertools.product(*swept.values())
    ]
    grid = [f"{name}={','.join(values)}" for name, values in swept.items()]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sweep = ["-m", *common, "store=store", "tracking=disabled", *grid]
        seconds: dict[str, Any] = {"sweep": dbexp(folder, *sweep, "hydra.sweep.dir=sweep")}
        seconds["sweep_training"] = max(training(folder / "sweep"))
        seconds["again"] = dbexp(folder, *sweep, "hydra.sweep.dir=again")
        seconds["ninth"] = dbexp(folder, *common, "store=store", "tracking=disabled", *NINTH, "hydra.run.dir=ninth")
        seconds["alone"] = dbexp(folder, *common, "store=other", "tracking=disabled", *NINTH, "hydra.run.dir=alone")
        one_by_one = [*TRAINING_ALONE, "store=solo", "hydra.launcher.size=1", "hydra.sweep.dir=solo"]
        dbexp(folder, "-m", *common, "tracking=disabled", *grid, *one_by_one)
        seconds["solo_training"] = training(folder / "solo")
        model = models.load(api.compose(common).model, Store(folder / "store"))
        model.stock_pipeline(None).save_pretrained(folder / "pipeline")
        plain = []
        command = [sys.executable, str(ROOT / "benchmarks" / "plain_script.py")]
        command += ["--model", "pipeline", "--shared", "shared", *(["--caches"] if arguments.caches else [])]
        for at, run in enumerate(runs):
            took, output = timed([*command, "--folder", f"plain/{at}", *common, *run], folder)
            plain.append({"wall": took, **json.loads(output.splitlines()[-1])})
            print(f"plain script, {' '.join(run)}: {took:.1f} s", file=sys.stderr, flush=True)
        with (folder / "sweep" / "results.csv").open(newline="") as file:
            scored = {row["job"]: row for row in csv.DictReader(file)}
        unet = sum(parameter.numel() for parameter in model.part("unet").parameters())
    of_sweep = {
        column: statistics.mean(float(scored[str(at)][column] or "nan") for at in range(len(runs)))
        for column in COLUMNS
    }
    of_scripts = {column: statistics.mean(script["scores"][column] for script in plain) for column in COLUMNS}
    summary = {
        "model": arguments.model,
        "runs": len(runs),
        "unet_parameters": unet,
        "seconds": seconds | {"plain": [round(script["wall"], 1) for script in plain]},
        "plain_stages": [script["seconds"] for script in plain],
        "scores": {"dbexp": of_sweep, "plain": of_scripts},
        "threads": torch.get_num_threads(),
        "provenance": provenance.collect(model.device),
    }
    print(json.dumps(summary, indent=1))
    print(f"\n{table(summary)}")


if __name__ == "__main__":
    main()
