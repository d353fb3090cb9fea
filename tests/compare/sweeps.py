"""Folders of sweeps with known effects, written in no time: small drawings for pictures, scores made of noise."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from dbexp.config.schema import Config
from dbexp.config.values import flatten, plain
from dbexp.evaluate.functional import Estimate, Resampling, estimate_mean
from dbexp.evaluate.report import Copy, ImageScores, PromptScores, Report
from dbexp.runs.record import Run

PROMPTS = ("a sks dog in the snow", "a sks dog wearing a red hat", "a red sks dog", "a sks dog on the beach")
HOW = Resampling(resamples=200)
IMAGE_COLUMNS = ("dino", "clip_i", "clip_t")
EFFECTS: dict[str, dict[str, float]] = {
    "lora.rank": {"dino": 0.002, "clip_i": 0.002, "pres": 0.0},
    "prior.weight": {"dino": -0.03, "clip_i": -0.02, "clip_t": 0.015, "pres": -0.12, "div": 0.03},
}
"""What one unit of a parameter does to a column (of lora.rank: per 4)."""
TILT: dict[str, float] = {"dino": -0.05}
"""What both together do beyond that, where a sweep is tilted."""


def sweep(
    folder: Path,
    grid: Mapping[str, Sequence[Any]] | None = None,
    *,
    prompts: Sequence[str] = PROMPTS,
    each: int = 2,
    side: int = 24,
    name: str = "dog",
    tilt: bool = False,
) -> Path:
    """Write a sweep of finished runs.

    Args:
        folder: of the sweep.
        grid: parameter -> values; None: two ranks, two weights, three seeds.
        prompts: token filled in.
        each: pictures per prompt.
        side: of a picture, pixels.
        name: of the subject, unless the grid has `dataset.name`.
        tilt: the effect of the rank depends on the weight.

    Returns:
        `folder`.
    """
    grid = grid or {"lora.rank": (4, 8), "prior.weight": (0, 1), "seed": (1, 2, 3)}
    for number, values in enumerate(itertools.product(*grid.values())):
        run(folder / str(number), dict(zip(grid, values, strict=True)), prompts, each, side, name, tilt)
    return folder


def run(
    folder: Path,
    settings: Mapping[str, Any],
    prompts: Sequence[str],
    each: int,
    side: int,
    name: str = "dog",
    tilt: bool = False,
) -> Path:
    """Write the folder of one finished run."""
    config = configured(settings, name)
    seed = int(settings.get("seed", 42))
    shift = shifts(settings, tilt)
    images = [
        picture(folder, row, shift if row == "run" else {"dino": -0.2}, seed, index, prompt, k, side)
        for row in ("run", "base")
        for index, prompt in enumerate(prompts)
        for k in range(each)
    ]
    of_class = [
        class_image(folder, row, shift if row == "run" else {"pres": -0.1}, seed, k, side)
        for row in ("run", "base")
        for k in range(8)
    ]
    real = [draw(folder / "dataset" / f"0{k}.png", (200, 120, 60 + 20 * k), side) for k in range(3)]
    scores = [
        prompt_scores(images, row, prompt, shift if row == "run" else {})
        for row in ("run", "base")
        for prompt in prompts
    ]
    rows = {row: estimates(images, of_class, scores, row) for row in ("run", "base")}
    rows["run"] |= {
        "copy_rate": Estimate(0.25, 0.1, 0.4, len(prompts)),
        "n_missing": Estimate(0.0),
        "n_blank": Estimate(0.0),
    }
    rows["real"] = {"dino": Estimate(0.82, 0.78, 0.86, 3), "clip_i": Estimate(0.9, 0.88, 0.92, 3)}
    rows["real"]["clip_t"] = Estimate(0.2, 0.18, 0.22, len(prompts))
    nearest = f"dataset/{real[0].name}"
    copies = (Copy(images[0].path, nearest, 0.91),)
    settings_of = {"resamples": HOW.resamples, "confidence": HOW.confidence, "seed": HOW.seed}
    backbones = {"dino": "dino", "clip": "clip", "lpips": "lpips"}
    report = Report(
        "made up",
        "sks",
        "dog",
        backbones,
        settings_of,
        rows,
        {},
        tuple(scores),
        tuple(images),
        copies,
        0.9,
        class_images=tuple(of_class),
        cost={"seconds": 200.0, "memory_mib": 900, "memory_of": "resident"},
    )
    rank = int(settings.get("lora.rank", 4))
    train = {
        "parameters": {"unet": 1000 * rank},
        "seconds": 40.0,
        "seconds_share": 2.5 * rank,
        "seconds_cover_steps": 60,
    }
    memory = {"memory_mib": 1200, "memory_of": "resident"}
    record = {"report": json.loads(report.to_json()), "config": config, "train": {**train, **memory, "lanes": 4}}
    record |= {"sample": {"images": len(images) // 2 + 8, "seconds": 30.25, **memory}, "lora_bytes": 4096 * rank}
    write(folder / "evaluate" / "metrics.json", record)
    steps = range(1, 61)
    noise = np.random.default_rng(seed)
    history = [
        {"step": s, "loss": float(0.3 / s**0.3 + 0.02 * noise.random()), "lr": 1e-3 * (1 - s / 80)} for s in steps
    ]
    (folder / "train").mkdir()
    (folder / "train" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    overrides = [f"{key}={value}" for key, value in settings.items()]
    write(folder / "result.json", {"name": " ".join(overrides), "overrides": overrides, "status": "finished"})
    return folder


def failed(folder: Path, settings: Mapping[str, Any], error: str) -> Path:
    """Write the folder of a run that failed."""
    overrides = [f"{key}={value}" for key, value in settings.items()]
    result = {"name": "failed", "overrides": overrides, "status": "failed", "error": error}
    write(folder / "result.json", result | {"config": configured(settings, "dog")})
    return folder


def configured(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The default config with some values, given by dotted names."""
    config: dict[str, Any] = plain(Config())
    config["dataset"]["name"], config["model"]["name"] = name, "made-up"
    config["seed"] = 42
    config["seeds"] = dict.fromkeys(("init", "data", "noise", "prior", "sample"), settings.get("seed", 42))
    for key, value in settings.items():
        *groups, last = key.split(".")
        node = config
        for group in groups:
            node = node[group]
        assert last in node, key
        node[last] = value
    return config


def shifts(settings: Mapping[str, Any], tilt: bool = False) -> dict[str, float]:
    """Column -> how far the settings move it."""
    moved: dict[str, float] = {}
    for parameter, effects in EFFECTS.items():
        units = float(settings.get(parameter, 0)) / (4 if parameter == "lora.rank" else 1)
        for column, effect in effects.items():
            moved[column] = moved.get(column, 0.0) + effect * units
    for column, effect in TILT.items() if tilt else ():
        moved[column] += effect * settings["lora.rank"] / 4 * settings["prior.weight"]
    return moved


def picture(
    folder: Path, row: str, shift: Mapping[str, float], seed: int, index: int, prompt: str, k: int, side: int
) -> ImageScores:
    """One sample and its scores: noise of prompt and seed, which runs share, and a little of its own."""
    shift_seed = 0 if row == "base" else sum(map(ord, f"{shift}{folder.name}")) % 1000
    shared, noise = np.random.default_rng([seed, index, k]), np.random.default_rng([shift_seed, seed, index, k])
    start = {"dino": 0.5, "clip_i": 0.75, "clip_t": 0.28}
    values = {
        column: start[column] + shift.get(column, 0.0) + 0.05 * shared.normal() + 0.01 * noise.normal()
        for column in IMAGE_COLUMNS
    }
    values["dino_max"] = values["dino"] + 0.1
    base = "sample/base" if row == "base" else "sample"
    path = f"{base}/{index:02d}-prompt/{k}.png"
    level = int(np.clip(400 * (values["dino"] - 0.3), 0, 255))
    colour = (level, 120, (60 * index + 25 * k) % 256)
    draw(folder / path, colour, side, corner=int(shared.integers(side // 3)))
    return ImageScores(row, prompt, k, path, values, f"dataset/0{index % 3}.png")


def class_image(folder: Path, row: str, shift: Mapping[str, float], seed: int, k: int, side: int) -> ImageScores:
    """One picture of the class and its `pres`."""
    noise = np.random.default_rng([seed, 99, k])
    path = f"sample/{'class_base' if row == 'base' else 'class'}/{k}.png"
    draw(folder / path, (90, 90, 20 * k), side)
    return ImageScores(
        row, "", k, path, {"pres": 0.45 + shift.get("pres", 0.0) + 0.04 * noise.normal()}, "dataset/00.png"
    )


def prompt_scores(images: Sequence[ImageScores], row: str, prompt: str, shift: Mapping[str, float]) -> PromptScores:
    """Means of a prompt's pictures."""
    image_values = [image.values for image in images if (image.row, image.prompt) == (row, prompt)]
    values = {column: float(np.mean([value[column] for value in image_values])) for column in image_values[0]}
    values["div"] = 0.5 + shift.get("div", 0.0) + (sum(map(ord, prompt)) % 100) / 1000
    return PromptScores(row, prompt, "accessory", len(image_values), values)


def estimates(
    images: Sequence[ImageScores], of_class: Sequence[ImageScores], scores: Sequence[PromptScores], row: str
) -> dict[str, Estimate]:
    """The columns of a row, from what it rests on."""
    of_row = [score for score in scores if score.row == row]
    counts = [score.n for score in of_row]
    columns = {
        column: estimate_mean([score.values[column] for score in of_row], HOW, counts=counts)
        for column in (*IMAGE_COLUMNS, "dino_max", "div")
    }
    columns["pres"] = estimate_mean([image.values["pres"] for image in of_class if image.row == row], HOW)
    return columns


def draw(path: Path, colour: tuple[int, int, int], side: int, corner: int = 0) -> Path:
    """A picture: an ellipse on a gradient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(60, 230, side, dtype=np.uint8)
    image = Image.fromarray(np.stack([np.tile(ramp, (side, 1))] * 3, axis=-1))
    brush = ImageDraw.Draw(image)
    brush.ellipse((corner, corner, corner + side // 2, corner + side // 2), fill=colour)
    brush.rectangle((side // 2, side // 2, side - 3, side - 3), outline=colour[::-1], width=2)
    image.save(path)
    return path


def write(path: Path, content: Any) -> None:
    """JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def report_of(**columns: float) -> Report:
    rows = {"run": {name: Estimate(value, value - 0.1, value + 0.1, 25) for name, value in columns.items()}}
    return Report(None, "sks", "dog", {}, {}, rows, {}, (), (), (), math.nan)


def unwritten(number: int, *overrides: str, error: str | None = None, **columns: float) -> Run:
    """A run of no folder: its config is the default one with `name=value` overrides; failed if it has an error."""
    config = flatten(plain(Config()))
    config |= {"seed": 42, **{f"seeds.{stream}": 42 for stream in ("init", "data", "noise", "prior", "sample")}}
    for override in overrides:
        name, _, value = override.partition("=")
        assert name in config
        config[name] = json.loads(value)
        if name == "seed":
            config |= {key: json.loads(value) for key in config if key.startswith("seeds.")}
    status = "failed" if error else "finished"
    return Run(Path(str(number)), "name", status, overrides, config, None if error else report_of(**columns), error)
