"""Which images a call of `dbexp-generate` asks for: rows are prompts, columns runs and LoRA scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from dbexp.config.check import unfit_steps
from dbexp.config.families import FAMILIES, SIZE_MULTIPLE
from dbexp.config.schema import ModelConfig
from dbexp.config.template import fill, names
from dbexp.core.errors import ConfigError, Problems, listed, shown
from dbexp.core.images import image_hash, read_rgb
from dbexp.core.store import Store
from dbexp.generate.settings import GenerateConfig
from dbexp.models import Model, load
from dbexp.models import drawing as drawing_of
from dbexp.models.inpaint import MASK_THRESHOLD
from dbexp.runs.names import what_differs
from dbexp.runs.record import TrainedRun
from dbexp.sample.draw import Drawing
from dbexp.sample.prompts import choose
from dbexp.sample.reading import Text, look
from dbexp.sample.shots import Shot, slug

_IMAGE_STRENGTH, _MASK_STRENGTH = 0.75, 1.0


@dataclass(frozen=True)
class GridColumn:
    """Images of one run at one strength."""

    heading: str
    run: TrainedRun
    model: ModelConfig
    scale: float | None
    """None: the base model alone."""
    rows: Mapping[str, tuple[Shot, ...]]
    """Row of the sheet -> its images; paths are below the folder of the grid."""

    @property
    def shots(self) -> tuple[Shot, ...]:
        """Every image, row by row."""
        return tuple(shot for row in self.rows.values() for shot in row)


def drawing(settings: GenerateConfig, run: TrainedRun) -> Drawing:
    """How to sample: as asked for, and otherwise as a run was sampled.

    Raises:
        ConfigError: an image cannot be read, or does not go with the other settings.
    """
    defaults = run.config.sample
    init = None if settings.init_image is None else read_rgb(Path(settings.init_image).expanduser())
    mask = None if settings.mask is None else read_rgb(Path(settings.mask).expanduser()).convert("L")
    unit = FAMILIES[run.config.model.family].size_multiple
    width, height = size(settings.width, settings.height, defaults.resolution, init.size if init else None, unit)
    steps = settings.steps or defaults.steps
    strength = settings.strength or (_IMAGE_STRENGTH if mask is None else _MASK_STRENGTH)
    problems = Problems()
    problems.require(
        init is None or int(steps * strength) >= 1,
        f"strength={strength:g}: leaves none of {steps} sampling steps; give at least {1 / steps:.2g}, or more steps",
    )
    if init is not None and mask is not None:
        problems.require(
            mask.size == init.size,
            f"mask={settings.mask}: has {mask.width} x {mask.height} pixels, init_image {init.width} x {init.height}; "
            "they must be of one size",
        )
        mask = ImageOps.fit(mask, (width, height)).point(lambda value: 255 if value >= MASK_THRESHOLD else 0)
        problems.require(
            mask.getextrema()[1] == 255,
            f"mask={settings.mask}: is black all over; paint white what is to be drawn anew",
        )
    problems.raise_if_any()
    return Drawing(
        steps=steps,
        guidance_scale=defaults.guidance_scale if settings.guidance_scale is None else settings.guidance_scale,
        sampler=settings.sampler or defaults.sampler,
        negative_prompt=defaults.negative_prompt or ""
        if settings.negative_prompt is None
        else settings.negative_prompt,
        width=width,
        height=height,
        batch_size=settings.batch_size or defaults.batch_size,
        strength=strength,
        init=None if init is None else ImageOps.fit(init, (width, height), Image.Resampling.LANCZOS),
        mask=mask,
        paste=settings.paste,
    )


def check_models(columns: Sequence[GridColumn], drawing: Drawing) -> None:
    """Find what base models cannot draw, before any is loaded.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems()
    start = {"image": "init_image without mask", "inpaint": "mask"}.get(drawing.task, "neither init_image nor mask")
    able = ", ".join(name for name, family in FAMILIES.items() if drawing.task in family.tasks)
    for name, kind in dict.fromkeys((column.model.name, column.model.family) for column in columns):
        family, model = FAMILIES[kind], f"model={name} of the family {kind}"
        problems.require(drawing.task in family.tasks, f"{start}: {model} cannot draw so; models of {able} can")
        problems.require(
            drawing.sampler is None or drawing.sampler in family.samplers,
            f"sampler={drawing.sampler}: {model} has {', '.join(family.samplers)}",
        )
        problems.require(
            not drawing.negative_prompt or not family.embeds_guidance,
            f"negative_prompt={shown(drawing.negative_prompt)}: {model} steers away from nothing; give an empty one",
        )
        problems.messages += unfit_steps("", kind, drawing.sampler, drawing.steps)
        unit = family.size_multiple
        for side, pixels in (("width", drawing.width), ("height", drawing.height)):
            problems.require(pixels % unit == 0, f"{side}={pixels}: must be a multiple of {unit} for {model}")
    problems.raise_if_any()


def check_texts(columns: Sequence[GridColumn], drawing: Drawing, store: Store) -> list[str]:
    """Hold prompts against what the text encoders read, before anything is drawn.

    Returns:
        Sentences about texts of which not all is read.

    Raises:
        ConfigError: with every prompt that loses the token of its subject.
    """
    problems, sentences = Problems(), list[str]()
    for column in columns:
        texts = [Text("prompt", shot.prompt) for shot in column.shots]
        if drawing.guidance_scale > 1 and drawing.negative_prompt:
            texts.append(Text("negative_prompt", drawing.negative_prompt))
        read = look(texts, column.run.config.dataset.token or None, load(column.model, store), store)
        problems.messages += read.problems
        sentences += read.cuts
    problems.raise_if_any()
    return list(dict.fromkeys(sentences))


def sources(settings: GenerateConfig) -> dict[str, str]:
    """init_image, mask -> `image_hash` of the file, of those that are given."""
    paths = {"init_image": settings.init_image, "mask": settings.mask}
    return {name: image_hash(Path(path).expanduser()) for name, path in paths.items() if path is not None}


def metadata(column: GridColumn, drawing: Drawing, model: Model, sources: Mapping[str, str]) -> dict[str, object]:
    """What the files of a column say besides `Shot.metadata`: all that its images depend on, by name."""
    task = drawing.task
    return {
        "run": column.run.name,
        "lora": "base" if column.scale is None else column.run.lora_hash,
        "lora_scale": 0 if column.scale is None else column.scale,
        "model": model.name,
        "model_hash": model.identity,
        "dtype": str(model.dtype).removeprefix("torch."),
        "task": task,
        "sampler": drawing.sampler or "the checkpoint's own",
        "steps": drawing.steps,
        "guidance_scale": drawing.guidance_scale,
        "negative_prompt": drawing.negative_prompt,
        "width": drawing.width,
        "height": drawing.height,
        **sources,
        **({} if task == "text" else {"strength": drawing.strength}),
        **({"paste": drawing.paste} if task == "inpaint" else {}),
    }


def size(
    width: int | None, height: int | None, resolution: int, init: tuple[int, int] | None, unit: int = SIZE_MULTIPLE
) -> tuple[int, int]:
    """Width and height of the images.

    Args:
        width, height: as asked for; None: to be chosen.
        resolution: the short side where neither is asked for, the other side of a text's image where one is.
        init: size of the image to start from, whose proportions are kept.
        unit: what chosen sides are multiples of.
    """
    if width and height:
        return width, height
    if init is None:
        return width or resolution, height or resolution
    if width:
        scale = width / init[0]
    elif height:
        scale = height / init[1]
    else:
        scale = resolution / min(init)
    scaled = [max(unit, round(side * scale / unit) * unit) for side in init]
    return width or scaled[0], height or scaled[1]


def columns(settings: GenerateConfig, runs: Sequence[TrainedRun]) -> tuple[GridColumn, ...]:
    """Every image of the grid.

    A row has the same seeds in every column. Runs of another subject have a row in common where the prompt, before
    {token} and {class} are filled in, is the same.

    Raises:
        ConfigError: a prompt is empty, doubled or wrongly braced, or a file of prompts cannot be read.
    """
    templates = [_templates(settings, run) for run in runs]
    numbers = {template: number for number, template in enumerate(dict.fromkeys(chain(*templates)))}
    subjects = {(run.config.dataset.token, run.config.dataset.class_noun) for run in runs}
    seeds = range(settings.seed, settings.seed + settings.images)
    columns: list[GridColumn] = []
    for heading, index, scale in _headings(settings, runs):
        run = runs[index]
        rows: dict[str, tuple[Shot, ...]] = {}
        for template in templates[index]:
            text = fill(template, run.config.dataset)
            folder = f"{len(columns):02}-{slug(heading)}/{numbers[template]:02}-{slug(text)}"
            row = text if len(subjects) == 1 else template
            rows[row] = (*rows.get(row, ()), *(Shot(text, seed, f"{folder}/{seed}.png") for seed in seeds))
        columns.append(GridColumn(heading, run, model_config(settings, run), scale, rows))
    return tuple(columns)


def model_config(settings: GenerateConfig, run: TrainedRun) -> ModelConfig:
    """The base model of a run, with what the settings put in its place."""
    changes: dict[str, Any] = {"precision": settings.precision, "device": settings.device}
    changes = {name: value for name, value in changes.items() if value is not None}
    if settings.model is not None and (settings.run or not run.elsewhere):
        changes |= {"name": Path(settings.model).stem, "path": settings.model, "revision": None, "variant": None}
    return replace(drawing_of(run.config.model), **changes)


def _templates(settings: GenerateConfig, run: TrainedRun) -> list[str]:
    """The prompts of a run, before its token and class are filled in."""
    lists = {"prompt": settings.prompt or None, "prompts": settings.prompts}
    templates: list[str] = []
    problems = Problems()
    for name, prompts in lists.items():
        try:
            if prompts is not None:
                templates += [prompt.template for prompt in choose(prompts, run.config.dataset)]
        except ConfigError as error:
            problems.messages += [problem.replace("sample.prompts", name, 1) for problem in error.problems]
    subject = run.config.dataset
    for name, field, value in (("token", "token", subject.token), ("class", "class_noun", subject.class_noun)):
        lacking = [each for each in templates if name in names(each) and not value]
        problems.require(
            not lacking,
            f"{field}=null: {listed(lacking, most=1)} has {{{name}}}, which only a run fills in; give {field}=WORD, or "
            "write it out",
        )
    problems.raise_if_any()
    return list(dict.fromkeys(templates))


def _headings(settings: GenerateConfig, runs: Sequence[TrainedRun]) -> list[tuple[str, int, float | None]]:
    """(heading, index of the run, strength) of every column."""
    headings: list[tuple[str, int, float | None]] = []
    names = _names(runs)
    if settings.base:
        bases: dict[tuple[str, ...], int] = {}
        for index, run in enumerate(runs):
            subject = run.config.dataset
            bases.setdefault((str(model_config(settings, run)), subject.token, subject.class_noun), index)
        for index in bases.values():
            headings.append(("base model" if len(bases) == 1 else f"base model of {names[index]}", index, None))
    for index in range(len(runs)):
        for scale in dict.fromkeys(settings.lora_scale):
            words = [names[index]] if len(runs) > 1 else []  # the title of the sheet names a single run
            words += [f"scale {scale:g}"] if not words or len(settings.lora_scale) > 1 or scale != 1 else []
            headings.append((", ".join(words), index, scale))
    return headings


def _names(runs: Sequence[TrainedRun]) -> list[str]:
    """The runs by what differs between them."""
    if len(runs) == 1:
        return [runs[0].name]
    differences = what_differs([run.overrides or [run.name] for run in runs])
    names = [" ".join(words) or run.name for run, words in zip(runs, differences, strict=True)]
    return [
        name if names.count(name) == 1 else f"{run.folder.name}: {name}" for name, run in zip(names, runs, strict=True)
    ]
