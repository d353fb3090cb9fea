"""Which pictures a call of `dbexp-generate` asks for: rows are prompts, columns runs and LoRA scales. Pure but for
reading the given pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from dbexp.config.check import fill
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError, Problems
from dbexp.core.hashing import file_hash
from dbexp.core.images import read_rgb
from dbexp.generate.settings import GenerateConfig
from dbexp.runs.names import what_differs
from dbexp.runs.record import TrainedRun
from dbexp.sample import prompts
from dbexp.sample.draw import slug

_MULTIPLE = 8  # pixels of one latent of Stable Diffusion
_HALF = 128  # of 8-bit grey: where a mask turns from keep to draw


@dataclass(frozen=True)
class Drawing:
    """How every picture of a grid is sampled."""

    task: str
    """text, image or inpaint."""
    steps: int
    guidance_scale: float
    sampler: str | None
    negative_prompt: str
    width: int
    height: int
    batch_size: int
    strength: float
    init: Image.Image | None = None
    """RGB, width x height."""
    mask: Image.Image | None = None
    """Black (keep) and white (draw), mode L, width x height."""
    paste: bool = True
    sources: Mapping[str, str] | None = None
    """init_image, mask -> sha256 of the file."""


@dataclass(frozen=True)
class Shot:
    """One picture."""

    row: str
    """Its row of the sheet."""
    prompt: str
    """What the text encoder reads."""
    seed: int
    path: Path
    """Below the folder of the grid."""


@dataclass(frozen=True)
class GridColumn:
    """Pictures of one run at one strength."""

    heading: str
    run: TrainedRun
    model: ModelConfig
    scale: float | None
    """None: the base model alone."""
    shots: tuple[Shot, ...]


def drawing(settings: GenerateConfig, run: TrainedRun) -> Drawing:
    """How to sample: as asked for, and otherwise as a run was sampled.

    Raises:
        ConfigError: a picture cannot be read, or does not go with the other settings.
    """
    usual = run.config.sample
    init = None if settings.init_image is None else read_rgb(Path(settings.init_image).expanduser())
    mask = None if settings.mask is None else read_rgb(Path(settings.mask).expanduser()).convert("L")
    width, height = size(settings.width, settings.height, usual.resolution, init.size if init else None)
    steps = settings.steps or usual.steps
    strength = settings.strength_or_default
    problems = Problems()
    problems.require(
        settings.task == "text" or int(steps * strength) >= 1,
        f"strength={strength:g}: leaves none of {steps} sampling steps; give at least {1 / steps:.2g}, or more steps",
    )
    if init is not None and mask is not None:
        problems.require(
            mask.size == init.size,
            f"mask={settings.mask}: has {mask.width} x {mask.height} pixels, init_image {init.width} x {init.height}; "
            "they must be of one size",
        )
        mask = ImageOps.fit(mask, (width, height)).point(lambda value: 255 if value >= _HALF else 0)
        problems.require(
            mask.getextrema()[1] == 255,
            f"mask={settings.mask}: is black all over; paint white what is to be drawn anew",
        )
    problems.raise_if_any()
    return Drawing(
        task=settings.task,
        steps=steps,
        guidance_scale=usual.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        sampler=settings.sampler or usual.sampler,
        negative_prompt=usual.negative_prompt or "" if settings.negative_prompt is None else settings.negative_prompt,
        width=width,
        height=height,
        batch_size=settings.batch_size or usual.batch_size,
        strength=strength,
        init=None if init is None else ImageOps.fit(init, (width, height), Image.Resampling.LANCZOS),
        mask=mask,
        paste=settings.paste,
        sources={
            name: file_hash(Path(path).expanduser())
            for name, path in (("init_image", settings.init_image), ("mask", settings.mask))
            if path is not None
        },
    )


def size(width: int | None, height: int | None, resolution: int, given: tuple[int, int] | None) -> tuple[int, int]:
    """Width and height of the pictures.

    Args:
        width, height: as asked for; None: to be found.
        resolution: the short side where neither is asked for, the other side of a text's picture where one is.
        given: size of the picture to start from, whose proportions are kept.

    Returns:
        Multiples of 8 where they were to be found.
    """
    if width and height:
        return width, height
    if given is None:
        return width or resolution, height or resolution
    if width:
        scale = width / given[0]
    elif height:
        scale = height / given[1]
    else:
        scale = resolution / min(given)
    found = [max(_MULTIPLE, round(side * scale / _MULTIPLE) * _MULTIPLE) for side in given]
    return width or found[0], height or found[1]


def columns(settings: GenerateConfig, runs: Sequence[TrainedRun]) -> tuple[GridColumn, ...]:
    """Every picture of the grid.

    A row has the same seeds in every column. Runs of another subject have a row in common where the prompt, before
    {token} and {class} are filled in, is the same.

    Raises:
        ConfigError: a prompt is empty, doubled or wrongly braced, or a file of prompts cannot be read.
    """
    templates = [_templates(settings, run) for run in runs]
    subjects = {(run.config.dataset.token, run.config.dataset.class_noun) for run in runs}
    rows = list(dict.fromkeys(template for own in templates for template in own))
    made: list[GridColumn] = []
    for heading, number, scale in _headings(settings, runs):
        run = runs[number]
        place = Path(f"{len(made):02}-{slug(heading)}")
        shots = []
        for template in templates[number]:
            text = fill(template, run.config.dataset)
            folder = place / f"{rows.index(template):02}-{slug(text)}"
            row = text if len(subjects) == 1 else template
            for k in range(settings.images):
                shots.append(Shot(row, text, settings.seed + k, folder / f"{settings.seed + k}.png"))
        made.append(GridColumn(heading, run, model_config(settings, run), scale, tuple(shots)))
    return tuple(made)


def model_config(settings: GenerateConfig, run: TrainedRun) -> ModelConfig:
    """The base model of a run, with what the settings put in its place."""
    chosen: dict[str, Any] = vars(run.config.model) | {
        name: value
        for name, value in (("precision", settings.precision), ("device", settings.device))
        if value is not None
    }
    if settings.model is not None:
        own = {"name": Path(settings.model).stem, "path": settings.model, "revision": None, "variant": None}
        chosen |= own
    return ModelConfig(**chosen)


def _templates(settings: GenerateConfig, run: TrainedRun) -> list[str]:
    """The prompts of a run, before its token and class are filled in."""
    wanted: list[Any] = [settings.prompt] if settings.prompt else []
    wanted += [settings.prompts] if settings.prompts is not None else []
    found: list[str] = []
    problems = Problems()
    for listed in wanted:
        name = "prompts" if listed is settings.prompts else "prompt"
        try:
            found += [prompt.template for prompt in prompts.choose(listed, run.config.dataset)]
        except ConfigError as error:
            problems.messages += [problem.replace("sample.prompts", name, 1) for problem in error.problems]
    problems.raise_if_any()
    return list(dict.fromkeys(found))


def _headings(settings: GenerateConfig, runs: Sequence[TrainedRun]) -> list[tuple[str, int, float | None]]:
    """(heading, number of the run, strength) of every column."""
    made: list[tuple[str, int, float | None]] = []
    names = _names(runs)
    if settings.base:
        bases: dict[tuple[str, ...], int] = {}
        for number, run in enumerate(runs):
            subject = run.config.dataset
            bases.setdefault((str(model_config(settings, run)), subject.token, subject.class_noun), number)
        for number in bases.values():
            made.append(("base model" if len(bases) == 1 else f"base model of {names[number]}", number, None))
    for number in range(len(runs)):
        for scale in dict.fromkeys(settings.lora_scale):
            told = [names[number]] if len(runs) > 1 else []  # the title of the sheet names a single run
            told += [f"scale {scale:g}"] if not told or len(settings.lora_scale) > 1 or scale != 1 else []
            made.append((", ".join(told), number, scale))
    return made


def _names(runs: Sequence[TrainedRun]) -> list[str]:
    """What tells the runs apart."""
    if len(runs) == 1:
        return [runs[0].name]
    told = what_differs([run.overrides or [run.name] for run in runs])
    names = [" ".join(words) or run.name for run, words in zip(runs, told, strict=True)]
    return [
        name if names.count(name) == 1 else f"{run.folder.name}: {name}" for name, run in zip(names, runs, strict=True)
    ]


def paste(pixels: np.ndarray[Any, np.dtype[np.uint8]], drawn: Drawing) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Put the kept pixels back into a picture, uint8 [H, W, 3]; without a mask it stays as it is."""
    if drawn.mask is None or drawn.init is None or not drawn.paste:
        return pixels
    keep = np.asarray(drawn.mask)[..., None] < _HALF
    return np.where(keep, np.asarray(drawn.init), pixels)
