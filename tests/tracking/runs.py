"""What tests of tracking are made of: a config, an evaluation with its pictures, and a way to read W&B's files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from PIL import Image
from wandb.util import get_core_path

from dbexp import tracking
from dbexp.config.schema import Config
from dbexp.core.files import write_atomic
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.report import ImageScores, PromptScores, Report
from dbexp.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
_PATIENCE = 10.0  # seconds
KEY = "0123456789abcdef" * 2 + "fedcba98"
ROWS = [{"step": step, "loss": 1 / step, "lr": 1e-4} for step in range(1, 21)]
PROMPTS = ("a sks dog in the snow", "a red sks dog")
SUMMARY = tracking.Summary(
    objective="dino",
    counts={"finished": 1, "failed": 1},
    best={"dino": 0.5, "clip_t": 0.25},
    title="0: rank=4",
    label="random weights",
    columns=["run", "status", "lora.rank", "train.betas", "DINO ↑", "dino low", "Pareto front", "label", "error"],
    rows=[
        ["0: rank=4", "finished", 4, "[0.9, 0.99]", 0.5, 0.4, "yes", "random weights", None],
        ["1: rank=8", "failed", 8, None, None, None, "", None, "ZeroDivisionError"],
        ["base model", "reference", None, None, 0.25, 0.2, "", None, None],
    ],
    axes=["CLIP-T", "DINO"],
    points=[["0: rank=4", 0.25, 0.5, True]],
    sheets=[["0: rank=4", "0/sample/contact_sheet.png"]],
    effect_columns=["kind", "parameter", "value", "low", "significant", "p"],
    effects=[["effect", "lora.rank", 0.1, 0.05, True, 0.01], ["behind", "", -0.1, -0.2, False, None]],
    page="report.html",
    best_runs=["0"],
    statements=[["lora.rank 4 → 8", "lora.rank 4 → 8: better DINO +0.100."]],
)
"""Of a sweep in whose folder the first run has a contact sheet."""


def config(mode: str = "offline") -> Config:
    cfg = Config()
    cfg.dataset.name, cfg.dataset.class_noun, cfg.dataset.live = "dog3", "dog", True
    cfg.model.name, cfg.model.path = "random", "random"
    cfg.experiment = "reference/diffusers"
    cfg.tracking.mode = mode
    return cfg


def evaluate(folder: Path, *, samples: int = 2, lora: bytes = b"weights") -> RunFolder:
    """Leave in a run's folder what a run has left when it is evaluated: `samples` per prompt and row, LoRA, report."""
    run_folder = RunFolder(folder)
    images = []
    for row, where in (("run", run_folder.sample), ("base", run_folder.base_samples)):
        for p, prompt in enumerate(PROMPTS):
            for k in range(samples):
                path = where / str(p) / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (1024, 512), (60 * k, 100 * p, 200 if row == "base" else 20)).save(path)
                images.append(ImageScores(row, prompt, k, run_folder.relative(path), {"dino": 0.5}, None))
    Image.new("RGB", (2000, 900)).save(run_folder.contact_sheet)
    run_folder.train.mkdir(exist_ok=True)
    run_folder.lora.write_bytes(lora)
    prompts = tuple(
        PromptScores(row, prompt, "other", samples, {"dino": 0.25 + p, "div": math.nan})
        for row in ("run", "base")
        for p, prompt in enumerate(PROMPTS)
    )
    rows = {
        "run": {"dino": Estimate(0.5, 0.4, 0.6, 2), "div": Estimate.missing("no prompt has two samples")},
        "base": {"dino": Estimate(0.25, 0.2, 0.3, 2)},
        "real": {"dino": Estimate(0.75, 0.7, 0.8, 3)},
    }
    settings = {"resamples": 1000, "confidence": 0.95, "seed": 0}
    report = Report(
        "random weights", "sks", "dog", {}, settings, rows, {}, prompts, tuple(images), (), copy_threshold=math.nan
    )
    write_atomic(
        run_folder.metrics,
        json.dumps({"report": report.plain(), "config": {}, "images": {"00.png": "a1"}, "model": {"identity": "b2"}}),
    )
    write_atomic(run_folder.result, json.dumps({"name": "rank=4", "overrides": [], "status": "finished"}))
    return run_folder


def inspect(folder: Path) -> list[list[dict[str, Any]]]:
    """Records of every offline run under a run's folder, oldest run first."""
    read = []
    for path in sorted(folder.rglob("*.wandb"), key=lambda path: path.stat().st_mtime):
        # what `wandb leet inspect --json` runs, without the seconds that its command line takes to start
        arguments = ["--no-observability", "--json", "--run-file", str(path), str(path.parents[1])]
        command = [get_core_path(), "leet", "inspect", *arguments]
        # W&B's own process may still be writing when `finish` has returned; a run that was killed has no exit
        deadline = time.monotonic() + _PATIENCE
        while True:
            inspected = subprocess.run(command, check=True, capture_output=True, text=True)
            records = [json.loads(line) for line in inspected.stdout.splitlines()]
            if of_type(records, "exit") or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        read.append(records)
    return read


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def exit_code(records: list[dict[str, Any]]) -> int:
    (exit_record,) = of_type(records, "exit")
    return int(exit_record.get("exit_code", 0))


def run_of(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What the run was told at its beginning."""
    (run,) = of_type(records, "run")
    return dict(run)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What a list of runs would show."""
    values: dict[str, Any] = {}
    for record in of_type(records, "summary"):
        values |= record["update"]
    return values


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Logged rows, without W&B's own entries."""
    rows = [record["item"] for record in of_type(records, "history")]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def environment(home: Path, **extra: str) -> dict[str, str]:
    """This process's, with a home that has no logins and no settings."""
    variables = {name: value for name, value in os.environ.items() if name != "NETRC" and not name.startswith("WANDB_")}
    return variables | {"HOME": str(home)} | extra
