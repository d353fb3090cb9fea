"""The sample stage: pictures of every prompt with the adapter on, and class images with it on and off for PRES.

The base model and every LoRA draw the same prompts from the same noise, so that their pictures compare in pairs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dbexp.config.check import fill
from dbexp.config.schema import Config
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample.prompts import Prompt, choose
from dbexp.sample.sets import draw_set
from dbexp.sample.shots import Sampling

FEWEST_CLASS_IMAGES = 25
"""Unless fewer are asked for: the mean similarity of a handful of pictures says little of a class."""


@dataclass(frozen=True)
class Samples:
    """The pictures of one model on the prompts of a run."""

    folder: Path
    """Of the store's entry; one folder per prompt."""
    prompts: tuple[str, ...]
    """Filled in, in order."""
    groups: Mapping[str, str]
    """Prompt -> recontextualisation, accessory, property or other."""
    images: Mapping[str, tuple[Path, ...]]
    """Prompt -> its `sample.images_per_prompt` PNG files, by number."""


def prompts(cfg: Config) -> tuple[Prompt, ...]:
    """The prompts of a run, filled in. Needs no weights, so a bad list is told before anything is computed.

    Raises:
        ConfigError: `sample.prompts` names no list, or holds an entry that is empty, doubled or wrongly braced.
    """
    return choose(cfg.sample.prompts, cfg.dataset)


def warnings(cfg: Config, model: Model) -> list[str]:
    """What is allowed but rarely meant about the prompts, as sentences for the log.

    Args:
        cfg: a checked config.
        model: its tokenizer counts; no weights are loaded.
    """
    room = model.max_tokens - 2  # a start and an end mark
    token = re.compile(rf"(?<!\w){re.escape(cfg.dataset.token)}(?!\w)")
    said = []
    for prompt in prompts(cfg):
        if not token.search(prompt.text):
            said.append(f"{prompt.text!r} does not contain the token {cfg.dataset.token!r}, so it asks for no subject")
        count = model.token_count(prompt.text)
        if count > room:
            said.append(f"{prompt.text!r} has {count} tokens: the text encoder reads only the first {room}")
    return said


def sample_prompts(cfg: Config, model: Model, lora: Path | None, store: Store) -> Samples:
    """Pictures of every prompt, from the store where they were drawn before.

    Args:
        cfg: a checked config.
        model: the base model.
        lora: the LoRA file merged into it meanwhile; None: the base model alone, on the same noise.
        store: where the pictures are kept.

    Raises:
        ConfigError: the prompts are wrong, or memory does not suffice for `sample.batch_size`.
    """
    listed = prompts(cfg)
    texts = tuple(prompt.text for prompt in listed)
    files = _draw(cfg, model, lora, store, stream="sample", prompts=texts, each=cfg.sample.images_per_prompt)
    each = cfg.sample.images_per_prompt
    return Samples(
        folder=files[0].parent.parent,
        prompts=texts,
        groups={prompt.text: prompt.group for prompt in listed},
        images={text: files[i * each : (i + 1) * each] for i, text in enumerate(texts)},
    )


def sample_class(cfg: Config, model: Model, lora: Path | None, store: Store) -> tuple[Path, ...]:
    """Pictures of `sample.class_prompt` for PRES, on noise that class images for prior preservation never have.

    Args:
        cfg: a checked config.
        model: the base model.
        lora: the LoRA file merged into it meanwhile; None: the adapter is off. Both draw from the same noise.
        store: where the pictures are kept.

    Returns:
        `class_count` PNG files; none when `sample.class_images` is 0.

    Raises:
        ConfigError: memory does not suffice for `sample.batch_size`.
    """
    count = class_count(cfg)
    prompt = fill(cfg.sample.class_prompt, cfg.dataset)
    return _draw(cfg, model, lora, store, stream="class", prompts=(prompt,), each=count) if count else ()


def class_count(cfg: Config) -> int:
    """Class images of a run: `sample.class_images`, or as many as it has samples, where that gives PRES some ground."""
    chosen = cfg.sample.class_images
    return max(FEWEST_CLASS_IMAGES, len(prompts(cfg)) * cfg.sample.images_per_prompt) if chosen is None else chosen


def _draw(
    cfg: Config, model: Model, lora: Path | None, store: Store, *, stream: str, prompts: tuple[str, ...], each: int
) -> tuple[Path, ...]:
    chosen = cfg.sample
    sampling = Sampling(
        stream=stream,
        seed=cfg.seeds.sample,
        prompts=prompts,
        images_per_prompt=each,
        steps=chosen.steps,
        guidance_scale=chosen.guidance_scale,
        sampler=chosen.sampler,
        resolution=chosen.resolution,
        negative_prompt=chosen.negative_prompt or "",
    )
    what = "sample" if stream == "sample" else "sample, class images"
    return draw_set(
        "sample",
        sampling,
        model,
        store,
        lora=lora,
        lora_scale=chosen.lora_scale,
        batch_size=chosen.batch_size,
        description=f"{what}, {'base model' if lora is None else 'adapter on'}",
    )
