"""What W&B shows of one run's result: numbers, tables, pictures, the LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from dbexp.core.files import readable
from dbexp.core.hashing import file_hash, key_of
from dbexp.evaluate.columns import COLUMNS, PAPER, REFERENCES, heading, in_order
from dbexp.evaluate.objective import with_score
from dbexp.evaluate.report import Report, summary
from dbexp.runs import foreign
from dbexp.runs.costs import Costs
from dbexp.runs.folder import RunFolder
from dbexp.runs.foreign import within
from dbexp.runs.names import WANDB_LENGTH

if TYPE_CHECKING:
    import wandb

PICTURE_PX = 512
"""Longest side of the pictures in tables; the run's folder has the originals."""


def scalars(report: Report) -> dict[str, float]:
    """metrics/, base/ and real/ with every column that has a value, and the recommendation among metrics/."""
    rows = {"metrics": with_score(report.rows)} | {key: report.rows[key] for key in REFERENCES if key in report.rows}
    return {
        f"{section}/{column}": estimate.value
        for section, columns in rows.items()
        for column, estimate in columns.items()
        if not math.isnan(estimate.value)
    }


def costs(of: Costs) -> dict[str, float]:
    """cost/ with every number that is on record; what is a lane's share of its pack says so in its name."""
    values = {name: value for name, value in vars(of).items() if isinstance(value, (int, float))}
    shares = ("train_seconds", "train_memory_mib") if of.is_share else ()
    return {f"cost/{name}{'_share' if name in shares else ''}": value for name, value in values.items()}


def metric_table(report: Report, name: str) -> wandb.Table:
    """The run with the ends of its intervals, the base model, the real images; a column per metric."""
    import wandb

    percent = f"{100 * report.settings['confidence']:g} %"
    run = report.rows["run"]
    rows: list[tuple[str, dict[str, float]]] = [
        (name, summary(report)),
        (f"{percent} from", {column: estimate.low for column, estimate in run.items()}),
        (f"{percent} to", {column: estimate.high for column, estimate in run.items()}),
    ]
    for key, title in REFERENCES.items():
        if key in report.rows:
            rows.append((title, {column: estimate.value for column, estimate in report.rows[key].items()}))
    columns = in_order([*COLUMNS, *run])
    return wandb.Table(
        columns=["row", "label", *map(heading, columns)],
        data=[[title, report.label, *(number(values.get(column)) for column in columns)] for title, values in rows],
    )


def prompt_table(report: Report, folder: Path) -> wandb.Table:
    """A row per prompt: the base model's first picture beside the run's pictures, and the paper's columns.

    Args:
        report: of the run.
        folder: that the paths of its pictures are relative to.
    """
    import wandb

    paths = {(image.row, image.prompt, image.index): folder / image.path for image in report.images}
    numbers = sorted({index for row, _, index in paths if row == "run"})
    prompts = [scores for scores in report.prompts if scores.row == "run"]
    columns = [column for column in PAPER if any(column in scores.values for scores in prompts)]

    def at(row: str, prompt: str, index: int) -> wandb.Image | None:
        path = paths.get((row, prompt, index))
        safe = path is not None and within(folder, path.relative_to(folder))
        return picture(path, largest=PICTURE_PX) if path is not None and safe else None

    return wandb.Table(
        columns=["prompt", "group", REFERENCES["base"], *(f"{k + 1}" for k in numbers), *map(heading, columns)],
        data=[
            [
                scores.prompt,
                scores.group,
                at("base", scores.prompt, 0),
                *(at("run", scores.prompt, k) for k in numbers),
                *(number(scores.values.get(column)) for column in columns),
            ]
            for scores in prompts
        ],
    )


def picture(path: Path, largest: int | None, caption: str | None = None) -> wandb.Image:
    """A file's picture as JPEG, its longer side at most `largest` pixels (None: as it is)."""
    import wandb

    with Image.open(path) as opened:
        image = opened.convert("RGB")
    if largest is not None:
        image.thumbnail((largest, largest))
    return wandb.Image(image, file_type="jpg", caption=caption)


def html(path: Path) -> wandb.Html:
    """A page as a panel; W&B adds nothing to it."""
    import wandb

    return wandb.Html(path.read_text(encoding="utf-8"), inject=False)


def sources(config: Mapping[str, Any], folder: RunFolder) -> list[wandb.Artifact]:
    """What a run was made from, by hashes alone: the subject's photographs, class images, the base model.

    No picture and no weight is uploaded. W&B makes a new version where the hashes are new.

    Args:
        config: every parameter by dotted name.
        folder: of the run.
    """
    import wandb

    record = foreign.read_json(folder.path, folder.metrics)
    images, model = record.get("images"), record.get("model")
    prior = sorted(folder.prior.glob("*")) if folder.prior.is_dir() else []
    hashes = {
        ("photographs", config["dataset.name"], "dataset"): images if isinstance(images, dict) else {},
        ("class-images", f"{config['dataset.class_noun']}-{config['model.name']}", "dataset"): {
            path.name: file_hash(path) for path in prior if foreign.regular(folder.path, folder.relative(path))
        },
        ("base-model", config["model.name"], "model"): model if isinstance(model, dict) else {},
    }
    artifacts = []
    for (what, whose, kind), content in hashes.items():
        if content:
            artifact = wandb.Artifact(_artifact_name(what, whose), type=kind, metadata={"count": len(content)})
            with artifact.new_file("hashes.json", encoding="utf-8") as file:
                file.write(readable(content))
            artifacts.append(artifact)
    return artifacts


def _artifact_name(*words: str) -> str:
    """Words as W&B takes them for the name of an artifact: of letters, digits, dots and dashes. What differs only in
    other letters, or beyond the longest name, still differs."""
    text = "-".join(words)
    name = re.sub(r"[^a-zA-Z0-9_.-]", "-", text)
    if text.isascii() and len(name) <= WANDB_LENGTH:
        return name
    return f"{name[: WANDB_LENGTH - 9]}-{key_of({'name': text})[:8]}"


def lora_artifact(config: Mapping[str, Any], report: Report, lora: Path) -> wandb.Artifact:
    """The LoRA, versioned by W&B under its subject and model.

    Args:
        config: every parameter by dotted name.
        report: its metrics become metadata.
        lora: the file.
    """
    import wandb

    artifact = wandb.Artifact(
        name=_artifact_name("lora", config["dataset.name"], config["model.name"]),
        type="lora",
        metadata={
            "model": config["model.name"],
            "token": config["dataset.token"],
            "class": config["dataset.class_noun"],
            "label": report.label,
            "metrics": {column: value for column, value in summary(report).items() if not math.isnan(value)},
        },
    )
    # the run's file is never changed, so W&B needs no copy of it
    artifact.add_file(str(lora), name=lora.name, policy="immutable")
    return artifact


def number(value: float | None) -> float | None:
    """A cell of a W&B table, which has None where we have NaN."""
    return None if value is None or math.isnan(value) else value
