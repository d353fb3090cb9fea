"""The rules of a config: those of each field, and those across fields, checked all at once before anything is computed.

The parameters themselves, with their documentation, bounds and choices, are the dataclasses of `dbexp.config.schema`;
YAML files in `conf/` hold the options of each group and are checked against these classes by Hydra.
"""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig

from dbexp.config import fields
from dbexp.config.families import FAMILIES, SAMPLERS, SITES
from dbexp.config.fields import Bounds
from dbexp.config.schema import BY_RESOLUTION, LPIPS_LEAST, Config
from dbexp.config.template import names, problem
from dbexp.config.values import flatten, structured
from dbexp.core.errors import ConfigError, Problems, shown

# optional optimisers: the library each needs, and the extra of this package that installs it
OPTIMIZER_LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}

_MOST_ARGUMENT, _MOST_SHIFT = 1_000_000, 1000
"""Of a number in the arguments of a backbone; of train.shift."""


def _check_family(config: Config, problems: Problems) -> None:
    """The rules that depend on the base model's family."""
    family = FAMILIES.get(config.model.family)
    if family is None:
        return
    unit = family.size_multiple
    for path, size in (("model.resolution", config.model.resolution), ("sample.resolution", config.sample.resolution)):
        problems.require(size % unit == 0, f"{path}={size}: must be a multiple of {unit}")
    for path, name, known, of_all in (
        ("lora.sites", config.lora.sites, family.sites, SITES),
        ("prior.sampler", config.prior.sampler, family.samplers, SAMPLERS),
        ("sample.sampler", config.sample.sampler, family.samplers, SAMPLERS),
    ):
        problems.require(
            name in known or name not in of_all,  # what no family knows is refused where the field is declared
            f"{path}={name}: model.family={config.model.family} has {', '.join(known)}",
        )
    problems.messages += unfit_steps("sample", config.model.family, config.sample.sampler, config.sample.steps)
    if config.prior.weight > 0 and config.prior.path is None:
        problems.messages += unfit_steps("prior", config.model.family, config.prior.sampler, config.prior.steps)
    train, named = config.train, f"model.family={config.model.family}"
    problems.require(
        config.model.precision != "fp16" or family.fp16,
        f"model.precision=fp16: {named} overflows in it; give bf16 or fp32",
    )
    problems.require(
        not config.lora.text_encoder or bool(family.text_parts),
        f"lora.text_encoder=true: {named} has no text encoder that can be adapted; give false",
    )
    problems.require(
        train.min_snr_gamma is None or not family.flow,
        f"train.min_snr_gamma={train.min_snr_gamma}: {named} is trained by flow matching, for which it is not defined; "
        "give null",
    )
    problems.require(
        train.noise_offset == 0 or family.noise_offset,
        f"train.noise_offset={train.noise_offset:g}: {named} has latents of several pixels in one channel; give 0",
    )
    problems.require(
        train.guidance == 1 or family.embeds_guidance,
        f"train.guidance={train.guidance:g}: {named} reads no guidance in training; give 1",
    )
    problems.require(
        not config.sample.negative_prompt or not family.embeds_guidance,
        f"sample.negative_prompt={shown(config.sample.negative_prompt)}: {named} reads guidance as a number, and "
        "steers away from nothing; give null",
    )
    problems.require(
        train.shift is None or family.flow,
        f"train.shift={shown(train.shift)}: {named} has a noise schedule of its own, which is not shifted; give null",
    )


def unfit_steps(group: str, family: str, sampler: str | None, steps: int) -> list[str]:
    """What is wrong with a number of sampling steps, as a message.

    Args:
        group: of the field; empty: it is in none.
        family: of the model.
        sampler: None: the checkpoint's own.
        steps: asked for.
    """
    known, prefix = FAMILIES[family], group and f"{group}."
    least, most = known.least_steps, known.steps_of(sampler)
    if least <= steps <= most:
        return []
    bound = f"at most {most}" if steps > most else f"at least {least}"
    with_sampler = f" with {prefix}sampler={sampler}" if sampler else ""
    return [f"{prefix}steps={steps}: must be {bound} for model.family={family}{with_sampler}"]


def _check_texts(config: Config, problems: Problems) -> None:
    """The rules of texts and numbers in fields that may hold several things."""
    prompts = config.sample.prompts
    if isinstance(prompts, str) and not fields.PATH.allows(prompts):
        problems.require(False, f"sample.prompts={shown(prompts)}: {fields.PATH.demand(prompts)}")
    for number, prompt in enumerate(prompts if isinstance(prompts, list) else (), start=1):
        if not fields.PROMPT.allows(prompt):
            why = fields.PROMPT.demand(prompt)
            problems.require(False, f"sample.prompts, entry {number}: {shown(prompt)} {why}")
    evaluate = config.evaluate
    groups = {"dino.kwargs": evaluate.dino.kwargs, "clip.kwargs": evaluate.clip.kwargs, "more": evaluate.more}
    for name, arguments in groups.items():
        for key, value in flatten(arguments).items():
            sensible = Bounds(most=_MOST_ARGUMENT).allows(value)
            problems.require(
                sensible,
                f"evaluate.{name}.{shown(key)}={shown(value)}: must be at most {_MOST_ARGUMENT:,} in size",
            )


def _check_together(config: Config, problems: Problems) -> None:
    """The rules that span several fields."""
    schedule, train, dataset = config.lr_schedule, config.train, config.dataset
    problems.require(
        bool(config.objective), "objective=null: name a column of the metric table, objective=dino, or recommend"
    )
    horizon = schedule.horizon or train.steps
    decays = schedule.name in ("linear", "cosine", "polynomial")
    problems.require(
        not decays
        or train.steps < 1
        or schedule.warmup_steps < horizon,  # no steps are refused where they are declared
        f"lr_schedule.warmup_steps={schedule.warmup_steps}: must be smaller than the horizon of {horizon} steps",
    )
    problems.require(
        schedule.name != "polynomial" or schedule.lr_end < train.lr,
        f"lr_schedule.lr_end={schedule.lr_end:g}: must be smaller than train.lr={train.lr:g}",
    )
    number = isinstance(train.shift, (int, float)) and not isinstance(train.shift, bool)
    problems.require(
        train.shift in (None, BY_RESOLUTION) or (number and 0 < train.shift <= _MOST_SHIFT),
        f"train.shift={shown(train.shift)}: must be a number greater than 0, {BY_RESOLUTION}, or null",
    )
    for path, value, default in (("logit_mean", train.logit_mean, 0.0), ("logit_std", train.logit_std, 1.0)):
        problems.require(
            value == default or train.timesteps == "logit_normal",
            f"train.{path}={value:g}: has no effect without train.timesteps=logit_normal",
        )
    library = OPTIMIZER_LIBRARIES.get(train.optimizer)
    problems.require(
        library is None or importlib.util.find_spec(library) is not None,
        f"train.optimizer={train.optimizer}: needs the package {library}; pip install {library}",
    )
    problems.require(
        train.text_encoder_lr is None or config.lora.text_encoder,
        f"train.text_encoder_lr={train.text_encoder_lr}: has no effect without lora.text_encoder=true",
    )
    problems.require(
        train.optimizer != "prodigy" or train.text_encoder_lr in (None, train.lr),
        f"train.text_encoder_lr={train.text_encoder_lr}: prodigy has one rate for everything; give null",
    )
    problems.require(
        config.lora.text_encoder_rank is None or config.lora.text_encoder,
        f"lora.text_encoder_rank={config.lora.text_encoder_rank}: has no effect without lora.text_encoder=true",
    )
    problems.require(
        config.lora.init is None or config.lora.path is None,
        f"lora.init={shown(config.lora.init)}: has no effect with lora.path, which is drawn as it is; give one of them",
    )
    problems.require(
        dataset.source != "folder" or dataset.path is not None,
        "dataset.path=null: say which folder holds the subject's pictures, dataset.path=FOLDER",
    )
    problems.require(
        dataset.token.strip() != "" and len(dataset.token.split()) == 1,
        f"dataset.token={shown(dataset.token)!r}: must be one word",
    )
    problems.require(dataset.class_noun.strip() != "", "dataset.class_noun='': say what the subject is, such as dog")
    for path, template in (
        ("dataset.prompt", dataset.prompt),
        ("prior.prompt", config.prior.prompt),
        ("sample.class_prompt", config.sample.class_prompt),
    ):
        wrong = problem(template)
        if wrong is None and path == "dataset.prompt" and "token" not in names(template):
            wrong = "must contain {token}, or nothing would name the subject"
        problems.require(wrong is None, f"{path}={shown(template)!r}: {wrong}")
    lpips = config.evaluate.lpips
    for path, side in (("evaluate.lpips.size", lpips.size), ("sample.resolution", config.sample.resolution)):
        least = LPIPS_LEAST.get(lpips.net, 0)
        problems.require(
            side >= least or side < 1,  # which the field's own bound refuses
            f"{path}={side}: must be at least {least}, the least that evaluate.lpips.net={lpips.net} reads",
        )
    for name in ("mean", "std"):
        values = getattr(config.evaluate.dino, name)
        problems.require(len(values) == 3, f"evaluate.dino.{name}={values}: give three, for red, green and blue")
    folder = config.prior.path
    if folder is not None and config.prior.weight > 0 and fields.PATH.allows(folder):
        problems.require(_is_folder(folder), f"prior.path={shown(folder)}: there is no such folder")


def _is_folder(path: str) -> bool:
    try:
        return Path(path).expanduser().is_dir()
    except OSError:  # no right to look there
        return False


def check(cfg: DictConfig | Config) -> Config:
    """Turn a composed config into plain dataclasses, having applied every rule.

    Args:
        cfg: what Hydra composed, without its `hydra` node, or a `Config`.

    Returns:
        A new `Config`, free of interpolations.

    Raises:
        ConfigError: with one line per problem, each naming the field, its value and what would be right.
    """
    config, problems = examine(cfg)
    if problems:
        raise ConfigError(problems)
    return config


def examine(cfg: DictConfig | Config) -> tuple[Config, list[str]]:
    """The same, for whoever looks for other problems too before any is told.

    Returns:
        The config, and what is wrong with it. In place of a value that is missing there is something else.

    Raises:
        ConfigError: a value is of another type than its field.
    """
    problems = Problems()
    literal = isinstance(cfg, Config)
    config = structured(asdict(cfg) if isinstance(cfg, Config) else cfg, literal=literal, missing=problems)
    problems.messages += fields.problems(config)
    _check_texts(config, problems)
    _check_family(config, problems)
    _check_together(config, problems)
    return config, problems.messages


def advice(config: Config, real_images: int) -> list[str]:
    """Settings that are allowed but rarely meant, as sentences for the log.

    Args:
        config: a checked config.
        real_images: number of the subject's pictures.
    """
    sentences = list[str]()
    if config.lora.path is not None:
        return sentences
    train = config.train
    high = 1e-3 if config.model.resolution >= 256 else 5e-3  # narrow models, which draw small pictures, bear more
    if train.optimizer != "prodigy":
        for name, lr in (("train.lr", train.lr), ("train.text_encoder_lr", train.text_encoder_lr)):
            if lr is not None and lr > high:
                sentences.append(f"{name}={lr:g} is high for LoRA: above {high:g} pictures tend to break")
            if lr is not None and lr < 1e-6:
                sentences.append(f"{name}={lr:g} is low for LoRA: below 1e-6 little is learnt")
    per_image = train.steps / max(real_images, 1)
    if not 50 <= per_image <= 400:
        sentences.append(
            f"train.steps={train.steps} is {per_image:.0f} steps for each of {real_images} pictures: "
            "50 to 400 is usual (fewer underfits, more memorises)"
        )
    if config.lora.rank > 128:
        sentences.append(f"lora.rank={config.lora.rank}: above 128 costs memory and seldom gains anything")
    return sentences
