"""What a training consists of, and what of it is computed once: latents of pictures, and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dbexp.config.families import Family
from dbexp.config.schema import LoraConfig, LrScheduleConfig, SeedsConfig, TrainConfig
from dbexp.core.device import processes
from dbexp.core.store import Store
from dbexp.models import VAE, Conditioning, Model
from dbexp.models.foreign_lora import ForeignLora
from dbexp.train import accumulation
from dbexp.train.accumulation import Accumulation
from dbexp.train.latents import Bank, encode


@dataclass(frozen=True)
class Training:
    """All that a LoRA depends on, the base model aside. Runs with equal ones share it.

    Attributes:
        images, prompt: the subject's pictures and their caption.
        class_images, class_prompt: the same for prior preservation; no pictures without it.
        prior_weight: of the class loss; 0: no prior preservation.
        resolution: width and height of training images in pixels.
        cfg: optimisation.
        lora, lr_schedule, seeds: as in the config.
        record: the run's whole config, JSON-like, for the metadata of the LoRA file.
        start: the LoRA that it goes on from; None: fresh weights.
        base_lora: a LoRA that the base has while it is trained on, and at no other time; None: none.
    """

    images: tuple[Path, ...]
    prompt: str
    class_images: tuple[Path, ...]
    class_prompt: str
    prior_weight: float
    resolution: int
    cfg: TrainConfig
    lora: LoraConfig
    lr_schedule: LrScheduleConfig
    seeds: SeedsConfig
    record: Mapping[str, Any] = field(default_factory=dict)
    start: ForeignLora | None = None
    base_lora: ForeignLora | None = None

    @property
    def prompts(self) -> list[str]:
        """Captions: of the subject, and of its class under prior preservation."""
        return [self.prompt, self.class_prompt] if self.prior_weight > 0 else [self.prompt]

    @property
    def accumulation(self) -> Accumulation:
        """Which passes make its optimizer steps."""
        priors = len(self.class_images) if self.prior_weight > 0 else 0
        return accumulation.of(self.cfg, len(self.images), priors, processes()[1])

    @property
    def leaves_remainder(self) -> bool:
        """Whether an epoch has passes that fill no optimizer step, so that `train.remainder` matters."""
        return self.accumulation.epoch % (self.cfg.grad_accum * processes()[1]) > 0

    def ranks(self, family: Family) -> dict[str, int]:
        """See `ranks_of`."""
        return ranks_of(self.lora, family)


def ranks_of(lora: LoraConfig, family: Family) -> dict[str, int]:
    """Part -> rank of its adapters, the denoiser first; only the parts that are trained."""
    text = lora.text_encoder_rank or lora.rank
    parts = family.text_parts if lora.text_encoder else ()
    return {family.denoiser: lora.rank, **dict.fromkeys(parts, text)}


@dataclass(frozen=True)
class TrainingData:
    """What the steps of a training need and never change.

    Attributes:
        training: whose it is.
        instance, prior: latents of its pictures; prior None without prior preservation.
        text: of `training.prompts`, a row each: tokens where the text encoder is trained, conditioning where not.
    """

    training: Training
    instance: Bank
    prior: Bank | None
    text: Conditioning


def prepare(trainings: Sequence[Training], model: Model, store: Store) -> list[TrainingData]:
    """Encode what never changes, and drop the parts that training does not need: text first, so that encoders and
    denoiser need not be in memory together."""
    if model.crowded:
        model.release(model.family.denoiser)
    texts = []
    for training in trainings:
        text = model.tokenize(training.prompts)
        if not training.lora.text_encoder:
            with torch.no_grad():
                text = model.encode(text)
        texts.append(text)
    if not any(training.lora.text_encoder for training in trainings):
        model.release(*model.family.encoders)
    banks: dict[tuple[object, ...], Bank] = {}
    data = []
    for training, text in zip(trainings, texts, strict=True):
        instance = _bank(training, training.images, "pictures", model, store, banks)
        classes = training.class_images if training.prior_weight > 0 else ()
        prior = _bank(training, classes, "class images", model, store, banks) if classes else None
        data.append(TrainingData(training, instance, prior, text))
    model.release(VAE)
    return data


def _bank(
    training: Training,
    paths: tuple[Path, ...],
    title: str,
    model: Model,
    store: Store,
    banks: dict[tuple[object, ...], Bank],
) -> Bank:
    """Latents of pictures of a training; what `banks` has of another that sees them alike is shared."""
    cfg, seed = training.cfg, training.seeds.data
    places = (cfg.crop_variants, seed) if cfg.crop == "random" else ()
    key = paths, training.resolution, cfg.interpolation, cfg.crop, places, cfg.flip
    if key not in banks:
        banks[key] = encode(paths, model, cfg, training.resolution, seed, store, title=title)
    return banks[key]
