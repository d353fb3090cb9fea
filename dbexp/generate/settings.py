"""What `dbexp-generate` can be asked for, and the rules that no type can express."""

from __future__ import annotations

from dataclasses import dataclass

from dbexp.config import fields
from dbexp.config.families import FAMILIES, SAMPLERS, SIZE_MULTIPLE
from dbexp.config.fields import PATH, PROMPT, bounded, choice, text
from dbexp.config.schema import (
    DEVICE,
    MOST_AT_ONCE,
    MOST_IMAGES,
    MOST_SAMPLING_STEPS,
    MOST_SEED,
    NEGATIVE,
    PRECISIONS,
    WORDS,
)
from dbexp.core.errors import Problems
from dbexp.core.folders import unusable
from dbexp.evaluate.columns import COLUMNS, RECOMMEND

USAGE = """\
dbexp-generate: pictures from trained runs

  dbexp-generate run=outputs/DATE/TIME prompt="a {token} {class} in the snow"
  dbexp-generate run=multirun/DATE/TIME prompt="a {token} {class} on the moon"     the sweep's best run
  dbexp-generate run=RUN,OTHER lora_scale=0.6,0.8,1 prompts=auto base=true         a grid, and the base model
  dbexp-generate run=RUN prompt="a {token} {class} in a garden" init_image=garden.jpg strength=0.6
  dbexp-generate run=RUN prompt="a {token} {class}" init_image=garden.jpg mask=where.png
  dbexp-generate lora=FILE.safetensors model=sdxl prompt="a sks dog in the snow"   a LoRA that any trainer wrote
  dbexp-generate run=RUN lora=FILE.safetensors prompts=auto                        such a LoRA beside a run's
"""


@dataclass
class GenerateConfig:
    """One call of `dbexp-generate`."""

    run: list[str] = text([], PATH, commas=True)
    """Folder of a run; several, comma separated, make columns. The folder of a sweep means its best run."""
    lora: list[str] = text([], PATH, commas=True)
    """LoRA file of any trainer (diffusers, kohya, ComfyUI, ai-toolkit, OneTrainer); several, comma separated, make columns after those of runs. Its base model is the first run's, or `model`."""
    prompt: list[str] = text([], PROMPT)
    """What to draw; {token} and {class} are filled in from the run. Give it several times for several rows."""
    prompts: str | None = text(None, PATH)
    """More prompts: auto, live or object, the paper's lists (auto: by the run's dataset.live), or a text file with one a line."""
    lora_scale: list[float] = bounded([1.0], most=1000, commas=True)
    """Strength of the LoRA; several, comma separated, make columns."""
    base: bool = False
    """Also draw with the base model alone, as the first column."""
    images: int = bounded(1, at_least=1, most=MOST_IMAGES)
    """Pictures per prompt and column."""
    seed: int = bounded(42, at_least=0, most=MOST_SEED - MOST_IMAGES)
    """Seed of the first picture of every prompt and column; the next one has seed + 1, and so on."""
    init_image: str | None = text(None, PATH)
    """Picture to start from (image to image), or to draw into (with `mask`)."""
    strength: float | None = bounded(None, above=0, at_most=1)
    """Share of the sampling steps that `init_image` goes through: little keeps it, 1 forgets it; null: 0.75, with a mask 1."""
    mask: str | None = text(None, PATH)
    """Picture of the size of `init_image`: white is drawn anew, black is kept."""
    paste: bool = True
    """With `mask`: put the pixels of `init_image` back where the mask is black; false: as the autoencoder returns them."""
    steps: int | None = bounded(None, at_least=1, most=MOST_SAMPLING_STEPS)
    """Sampling steps; null: as the first run was sampled."""
    guidance_scale: float | None = bounded(None, at_least=0, most=1000)
    """Classifier-free guidance, 1 for none; null: as the first run was sampled."""
    sampler: str | None = choice(None, SAMPLERS)
    """How noise becomes a picture; null: as the first run was sampled."""
    negative_prompt: str | None = text(None, NEGATIVE)
    """What to steer away from; null: as the first run was sampled."""
    width: int | None = bounded(None, at_least=8, most=8192)
    """Pixels; null: as the first run was sampled, in the proportions of `init_image` if there is one."""
    height: int | None = bounded(None, at_least=8, most=8192)
    """Pixels; null: likewise."""
    batch_size: int | None = bounded(None, at_least=1, most=MOST_AT_ONCE)
    """Pictures sampled at once, which does not change them beyond rounding; null: as the first run was sampled."""
    objective: str | None = choice(None, (*COLUMNS, RECOMMEND))
    """What picks the best run of a sweep, a column of the metric table or recommend; null: the objective of the sweep."""
    model: str | None = text(None, PATH)
    """Another base of the same architecture, such as an inpainting checkpoint: hub id, folder or file; null: the run's. Without a run: an option of dbexp, as model=sdxl; or, with `family`, a hub id, folder or file."""
    family: str | None = choice(None, {name: family.title for name, family in FAMILIES.items()})
    """Without a run: of a `model` that is no option of dbexp. It is drawn with the settings of the first option of its family."""
    token: str | None = text(None, WORDS)
    """Without a run: what {token} means in prompts."""
    class_noun: str | None = text(None, WORDS)
    """Without a run: what {class} means in prompts."""
    precision: str | None = choice(None, PRECISIONS)
    """Of the weights; null: as the run."""
    device: str | None = text(None, DEVICE)
    """cpu, cuda, mps or auto; null: as the run."""
    store: str | None = text(None, PATH)
    """Folder of the content-addressed cache; null: `dbexp` in the cache folder of the user."""
    folder: str | None = text(None, PATH)
    """Where the pictures go, and where those that are there already are kept; null: generated/DATE/TIME."""


def check(settings: GenerateConfig) -> None:
    """Find what is wrong with the settings and can be known without reading a file.

    Raises:
        ConfigError: with every problem.
    """
    problems = Problems()
    problems.require(
        bool(settings.run or settings.lora),
        "run=[]: say which run, run=FOLDER, or which LoRA of another trainer, lora=FILE",
    )
    for name in ("family", "token", "class_noun"):
        value = getattr(settings, name)
        problems.require(value is None or not settings.run, f"{name}={value}: has no effect with run=FOLDER")
    if settings.lora and not settings.run:
        _check_alone(settings, problems)
    problems.require(
        bool(settings.prompt) or settings.prompts is not None,
        'prompt: say what to draw, prompt="a {token} {class} in the snow", or prompts=auto for the paper\'s list',
    )
    problems.messages += fields.problems(settings)
    for name in ("width", "height"):
        value = getattr(settings, name)
        problems.require(
            value is None or value % SIZE_MULTIPLE == 0, f"{name}={value}: must be a multiple of {SIZE_MULTIPLE}"
        )
    problems.require(bool(settings.lora_scale), "lora_scale=[]: give at least one strength, such as 1")
    for name in ("strength", "mask"):
        value = getattr(settings, name)
        problems.require(
            value is None or settings.init_image is not None, f"{name}={value}: has no effect without init_image=FILE"
        )
    problems.require(settings.paste or settings.mask is not None, "paste=false: has no effect without mask=FILE")
    problems.messages += unusable("folder", settings.folder)
    problems.messages += unusable("store", settings.store, readable=True)
    problems.raise_if_any()


def _check_alone(settings: GenerateConfig, problems: Problems) -> None:
    """What only a run would know must be said where there is none."""
    problems.require(
        settings.model is not None, "model=null: say which base model the LoRA was trained on, as model=sdxl"
    )
    problems.require(settings.objective is None, f"objective={settings.objective}: has no effect without run=FOLDER")
