"""What the stages are asked for: small frozen requests, taken from the config of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dbexp.config.schema import Config
from dbexp.config.template import fill
from dbexp.config.values import plain
from dbexp.models.foreign_lora import ForeignLora
from dbexp.sample.prior import PriorRequest
from dbexp.sample.prompts import choose
from dbexp.sample.reading import PROMPTS, Text
from dbexp.sample.sample import SampleRequest
from dbexp.sample.shots import Sampling
from dbexp.train.data import Training

FEWEST_CLASS_SAMPLES = 25
"""Unless fewer are asked for: the mean similarity of a handful of images says little of a class."""


def prior_request(config: Config) -> PriorRequest | None:
    """The prior images of a run; None without prior preservation, or without training."""
    prior = config.prior
    if prior.weight == 0 or config.lora.path is not None:
        return None
    sampling = Sampling(
        stream="prior",
        seed=config.seeds.prior,
        prompts=(fill(prior.prompt, config.dataset),),
        images_per_prompt=prior.count,
        steps=prior.steps,
        guidance_scale=prior.guidance_scale,
        sampler=prior.sampler,
        resolution=config.model.resolution,
    )
    return PriorRequest(sampling, prior.batch_size, prior.path, prior.use_all, _grows(config), config.sample.compile)


def sample_request(config: Config) -> SampleRequest:
    """The samples of a run. Needs no weights, so a bad list of prompts is told before anything is computed.

    Raises:
        ConfigError: `sample.prompts` names no list, or holds an entry that is empty, doubled or wrongly braced.
    """
    sample = config.sample
    groups = {prompt.text: prompt.group for prompt in choose(sample.prompts, config.dataset)}
    sampling = Sampling(
        stream="sample",
        seed=config.seeds.sample,
        prompts=tuple(groups),
        images_per_prompt=sample.images_per_prompt,
        steps=sample.steps,
        guidance_scale=sample.guidance_scale,
        sampler=sample.sampler,
        resolution=sample.resolution,
        negative_prompt=sample.negative_prompt or "",
    )
    count = sample.class_images
    if count is None:
        count = max(FEWEST_CLASS_SAMPLES, len(groups) * sample.images_per_prompt)
    class_prompt = fill(sample.class_prompt, config.dataset)
    of_class = replace(sampling, stream="class", prompts=(class_prompt,), images_per_prompt=count)
    return SampleRequest(
        groups,
        sampling,
        of_class if count else None,
        sample.lora_scale,
        sample.batch_size,
        _grows(config),
        sample.compile,
    )


def _grows(config: Config) -> bool:
    """Whether batches of images may be as large as memory allows: rounding would follow what memory there is."""
    return config.sample.lanes == "auto" and not config.model.deterministic


def texts(config: Config) -> list[Text]:
    """Every text of a run that is encoded."""
    prior, sample = config.prior, config.sample
    trains = config.lora.path is None
    templates = [("dataset.prompt", config.dataset.prompt)] if trains else []
    templates += [("prior.prompt", prior.prompt)] if trains and prior.weight > 0 else []
    templates += [("sample.class_prompt", sample.class_prompt)] if sample.class_images != 0 else []
    found = [Text(field, fill(template, config.dataset)) for field, template in templates]
    found += [Text(PROMPTS, prompt.text) for prompt in choose(sample.prompts, config.dataset)]
    if sample.negative_prompt and sample.guidance_scale > 1:
        found.append(Text("sample.negative_prompt", sample.negative_prompt))
    return found


def training_request(
    config: Config,
    images: Sequence[Path],
    prompt: str,
    class_images: Sequence[Path],
    start: ForeignLora | None = None,
    base_lora: ForeignLora | None = None,
) -> Training:
    """What a run trains on and how.

    Args:
        config: of the run.
        images, prompt: the subject's pictures and their caption.
        class_images: empty without prior preservation.
        start: the LoRA of `lora.init`, read.
        base_lora: that of `model.training_lora`.
    """
    dataset, lora = replace(config.dataset, path=None, root=None), replace(config.lora, init=None)
    nowhere = replace(config, dataset=dataset, lora=lora, store=None)
    return Training(
        images=tuple(images),
        prompt=prompt,
        class_images=tuple(class_images),
        class_prompt=fill(config.prior.prompt, config.dataset),
        prior_weight=config.prior.weight,
        resolution=config.model.resolution,
        cfg=config.train,
        lora=config.lora,
        lr_schedule=config.lr_schedule,
        seeds=config.seeds,
        record=plain(nowhere),
        start=start,
        base_lora=base_lora,
    )
