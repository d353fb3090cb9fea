"""What the built-in model shows: five questions, each a sweep over seeds, for the subjects given.

    python benchmarks/storybook.py run --out FOLDER --subject dog
    python benchmarks/storybook.py run --out FOLDER --subject dog2 --seeds 1 2 3 sample.images_per_prompt=1
    python benchmarks/storybook.py write --out FOLDER --to benchmarks/REPORT

`run` may be killed and repeated; runs that several questions share are trained once, and two subjects may run side by
side in two processes. `write` only collects: the tables and sentences are those that the project's own comparison wrote
for each sweep, with its intervals; it adds the contact sheets, the base model's pictures and where all of it was made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import dbexp
from dbexp import models
from dbexp.compare.markdown import MARKDOWN
from dbexp.compare.scores import CLASS_IMAGE
from dbexp.core import provenance
from dbexp.core.store import Store
from dbexp.runs import record
from dbexp.runs.folder import RunFolder
from dbexp.storybook.pretrain.export import sample_sheet

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = {
    "prior": ("Does prior preservation protect the class?", "prior.weight=0,1"),
    "lr_schedule": ("Constant or polynomial learning rate?", "lr_schedule=constant,polynomial"),
    "lr": ("Which learning rate?", "train.lr=2e-4,2e-3,6e-3"),
    "rank": ("Which rank?", "lora.rank=2,4,16"),
    "text_encoder": ("Should the text encoder be trained?", "lora=attention,text_encoder"),
}
"""Name -> what it asks, and what is swept around the defaults."""
_RECORD = "questions.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run")
    run_parser.add_argument("--out", type=Path, required=True)
    run_parser.add_argument("--subject", required=True, help="a name of dataset=storybook/...")
    run_parser.add_argument("--seeds", nargs="+", default=["1", "2", "3"])
    run_parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=[*QUESTIONS])
    run_parser.add_argument("overrides", nargs="*", help="more parameters, the same for every run")
    write_parser = commands.add_parser("write")
    write_parser.add_argument("--out", type=Path, required=True, help="the folder that `run` filled")
    write_parser.add_argument("--to", type=Path, required=True, help="REPORT.md is written, pictures into REPORT/")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments)
    else:
        write(arguments.out, arguments.to)


def run(arguments: argparse.Namespace) -> None:
    """The sweeps of one subject; what each was asked is kept beside it."""
    out = arguments.out.resolve() / arguments.subject
    out.mkdir(parents=True, exist_ok=True)
    for name in arguments.questions:
        words = [
            f"dataset=storybook/{arguments.subject}",
            *arguments.overrides,
            QUESTIONS[name][1],
            f"seed={','.join(arguments.seeds)}",
        ]
        folders = [f"store={out.parent / 'store'}", "tracking=disabled", f"hydra.sweep.dir={out / name}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
        subprocess.run([sys.executable, "-m", "dbexp", "-m", *words, *folders], env=environment, check=True)
        record = _record(out)
        record[name] = " ".join(words)
        (out / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def write(out: Path, report: Path) -> None:
    """The report of everything that was run."""
    report.mkdir(parents=True, exist_ok=True)
    parts = [f"- Hardware and versions: {_machine()}", _base_model(report)]
    for folder in sorted(path.parent for path in out.glob(f"*/{_RECORD}")):
        parts.append(f"## {folder.name}")
        for name, words in _record(folder).items():
            body = (folder / name / MARKDOWN).read_text(encoding="utf-8").partition("\n\n")[2].strip()
            parts.append(f"### {QUESTIONS[name][0]}\n\n`dbexp -m {words}`\n\n{body}")
            if name == "prior":
                parts += [_class_diversity(folder / name), _sheets(folder / name, report, f"{folder.name}_{name}")]
    report.with_suffix(".md").write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")


def _record(folder: Path) -> dict[str, str]:
    path = folder / _RECORD
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _machine() -> str:
    machine: dict[str, Any] = provenance.collect(torch.device("cpu"))
    packages = ", ".join(f"{name} {machine['packages'][name]}" for name in ("torch", "diffusers", "transformers"))
    return f"{machine['device']['name']}, {machine['cpus']} cores; Python {machine['python']}, {packages}"


def _base_model(report: Path) -> str:
    """48 pictures of the base model, both prompt lists."""
    with tempfile.TemporaryDirectory() as store:
        pipeline = models.load(dbexp.compose([]).model, Store(Path(store))).pipeline(None)
    sheet = sample_sheet(pipeline, report / "base_model.png")
    return f"## The base model\n\n![48 pictures: a row a class]({report.name}/{sheet.name})"


def _class_diversity(sweep: Path) -> str:
    """`div_prior` with prior preservation less without, paired by seed and class image, whose noise is the same."""
    estimate = dbexp.effect(dbexp.load_pictures(sweep, "div_prior"), "prior.weight", 0, 1)
    return (
        f"DIV prior (LPIPS between class images), prior.weight 0 → 1: {estimate.value:+.3f} "
        f"[{estimate.low:+.3f}, {estimate.high:+.3f}] {estimate.scope_of(CLASS_IMAGE)}."
    )


def _sheets(sweep: Path, report: Path, name: str) -> str:
    """Contact sheets of the first run of each setting, as JPEG."""
    lines = []
    runs = record.load(sweep)
    for run in runs:
        if run.config["seed"] == min(other.config["seed"] for other in runs):
            target = report / f"{name}_{run.folder.name}.jpg"
            with Image.open(RunFolder(run.folder).contact_sheet) as sheet:
                sheet.convert("RGB").save(target, quality=85)
            lines.append(f"{run.name}:\n\n![contact sheet]({report.name}/{target.name})")
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
