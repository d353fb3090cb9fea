"""A sweep of eight runs with dbexp against a plain script run eight times; then a ninth run, and the sweep again.

    python benchmarks/sweep.py --model storybook
    python benchmarks/sweep.py --model random --runs 2 train.steps=10 sample.class_images=8   # a look whether it works

Everything runs in processes of its own, one after the other, on the same machine in one go: ratios count, absolute
times drift. Every command starts with an empty store, except those whose point is that it is not. The scores of both
ways are printed side by side: their noise differs, so they agree only as far as two seeds do.
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

from dbexp import api, models, provenance
from dbexp.store import Store

ROOT = Path(__file__).resolve().parents[1]
SWEPT = {"lora.rank": ("4", "16"), "prior.weight": ("0", "1"), "seed": ("1", "2")}
NINTH = ["lora.rank=8", "prior.weight=1", "seed=1"]
COLUMNS = ("dino", "clip_i", "clip_t", "pres", "div")


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    """Seconds that a command takes, start of the interpreter included, and what it prints on standard output."""
    started = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return seconds, done.stdout


def dbexp(folder: Path, *words: str) -> float:
    """Seconds of a dbexp command."""
    return timed([sys.executable, "-m", "dbexp.run", *words], folder)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="storybook", help="option of the group `model`")
    parser.add_argument("--runs", type=int, default=8, choices=(2, 4, 8))
    parser.add_argument("--solo", action="store_true", help="also the eight runs by dbexp, one process and store each")
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
        train = [json.loads(path.read_text()) for path in (folder / "sweep").glob("*/train/train.json")]
        seconds["sweep_training"] = max(record["seconds"] for record in train)
        seconds["again"] = dbexp(folder, *sweep, "hydra.sweep.dir=again")
        seconds["ninth"] = dbexp(folder, *common, "store=store", "tracking=disabled", *NINTH, "hydra.run.dir=ninth")
        seconds["alone"] = dbexp(folder, *common, "store=other", "tracking=disabled", *NINTH, "hydra.run.dir=alone")
        if arguments.solo:
            seconds["solo"] = [
                dbexp(folder, *common, f"store=solo{at}", "tracking=disabled", *run, f"hydra.run.dir=solo/{at}")
                for at, run in enumerate(runs)
            ]
        model = models.load(api.compose(common).model, Store(folder / "store"))
        model.stock_pipeline(None).save_pretrained(folder / "pipeline")
        plain = []
        script = [sys.executable, str(ROOT / "benchmarks" / "plain_script.py")]
        script += ["--model", "pipeline", "--shared", "shared", *(["--caches"] if arguments.caches else [])]
        for at, run in enumerate(runs):
            took, said = timed([*script, "--folder", f"plain/{at}", *common, *run], folder)
            plain.append({"wall": took, **json.loads(said.splitlines()[-1])})
            print(f"plain script, {' '.join(run)}: {took:.1f} s", file=sys.stderr, flush=True)
        with (folder / "sweep" / "results.csv").open(newline="") as file:
            table = {row["job"]: row for row in csv.DictReader(file)}
        unet = sum(parameter.numel() for parameter in model.part("unet").parameters())
    ours = {
        column: statistics.mean(float(table[str(at)][column] or "nan") for at in range(len(runs))) for column in COLUMNS
    }
    theirs = {column: statistics.mean(one["scores"][column] for one in plain) for column in COLUMNS}
    whole, training = sum(one["wall"] for one in plain), sum(one["seconds"]["train"] for one in plain)
    summary = {
        "model": arguments.model,
        "runs": len(runs),
        "unet_parameters": unet,
        "plain_over_sweep": round(whole / seconds["sweep"], 2),
        "plain_over_sweep_training": round(training / seconds["sweep_training"], 2),
        "again_over_sweep": round(seconds["again"] / seconds["sweep"], 3),
        "again_seconds_per_job": round(seconds["again"] / len(runs), 2),
        "ninth_over_sweep_per_run": round(seconds["ninth"] / (seconds["sweep"] / len(runs)), 2),
        "ninth_over_alone": round(seconds["ninth"] / seconds["alone"], 2),
        "seconds": seconds | {"plain": [round(one["wall"], 1) for one in plain]},
        "plain_stages": [one["seconds"] for one in plain],
        "scores": {"dbexp": ours, "plain": theirs},
        "threads": torch.get_num_threads(),
        "provenance": provenance.collect(model.device),
    }
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
