"""What the stages of a run take, counted on a pretended card: memory, and operations for a roofline.

The package's own code runs: a microbatch of lanes, a batch of images, a batch through the networks of the metrics.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dbexp import models
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError
from dbexp.core.files import locate
from dbexp.core.store import Store
from dbexp.estimate import hollow
from dbexp.estimate.card import PretendedCard
from dbexp.estimate.cards import Card
from dbexp.estimate.counts import Count, Drawn, Value, recall
from dbexp.estimate.kept import base_files
from dbexp.estimate.published import PUBLISHED
from dbexp.evaluate.backbones.deferred import open_backbone
from dbexp.models import VAE, Batch, Model
from dbexp.models.lora_file import linear_layer
from dbexp.pipeline.requests import training_request
from dbexp.train import measured, memory

_ENOUGH = 1 << 50
"""Bytes of the pretended card: how much a stage takes is the question, not whether there is as much."""
_STEPS = 3
"""Sampling steps that are counted, and one less: the difference is a step, whatever the sampler does at first."""


class Measure:
    """Counts for runs, each made once for all runs that it is the same for.

    Args:
        folder: for what is written meanwhile.
        card: whose compute capability decides the precision.
        kept: where counts are kept for the next time; None: nowhere.
    """

    def __init__(self, folder: Path, card: Card, kept: Store | None = None) -> None:
        self._folder, self._card, self._kept = folder, card, kept
        self._made: dict[str, Any] = {}
        self._store = Store(folder / "store")

    def training(self, config: Config, lanes: int) -> Count:
        """A microbatch of so many equal lanes, with an optimizer step."""
        asked = ("train", lanes, config.model, config.lora, config.train, config.prior.weight > 0)
        return self._once(asked, config, lambda: self._training(config, lanes))

    def drawing(self, config: Config, images: int) -> Drawn:
        """A batch of so many images as `config.sample` has them."""

        def count() -> Drawn:
            first, second = (self._drawing(config, images, steps) for steps in (_STEPS - 1, _STEPS))
            step = Counter(second.operations)
            step.subtract(Counter(first.operations))
            step = +step
            rest = Counter(first.operations)
            rest.subtract({operation: (_STEPS - 1) * count for operation, count in step.items()})
            return Drawn(Count(step, second.peak), Count(+rest, second.peak))

        return self._once(("sample", images, config.model, config.sample), config, count)

    def metrics(self, config: Config) -> Count:
        """A batch of `evaluate.batch_size` images through all three networks."""
        asked = ("evaluate", config.sample.resolution, config.evaluate)
        return self._once(asked, None, lambda: self._metrics(config))

    def parameters(self, config: Config) -> dict[str, int]:
        """Weights of each part of the base model."""

        def count() -> dict[str, int]:
            with self._model(config) as (_, model):
                parts = (model.family.denoiser, VAE, *model.family.encoders)
                return {part: sum(weight.numel() for weight in model.part(part).parameters()) for part in parts}

        return self._once(("parameters", config.model), config, count)

    def adapter_weights(self, config: Config) -> int:
        """Weights of a LoRA."""

        def count() -> int:
            training = training_request(config, (), "", ())
            with self._model(config) as (_, model):
                layers = [
                    (rank, linear_layer(model.part(part), site))
                    for part, rank in training.ranks(model.family).items()
                    for site in model.sites(part, config.lora.sites)
                ]
                return sum(rank * (layer.in_features + layer.out_features) for rank, layer in layers)

        return self._once(("adapter", config.model, config.lora), config, count)

    def _once(self, asked: Sequence[object], config: Config | None, count: Callable[[], Value]) -> Value:
        """An answer that was found before, by whichever process, or is found now.

        Args:
            asked: what it depends on.
            config: whose base model it depends on, too.
        """
        of = (asdict(each) if is_dataclass(each) and not isinstance(each, type) else each for each in asked)
        key = json.dumps([*of])
        if key not in self._made:
            files = {} if config is None else base_files([config.model])
            question = {"asked": key, "capability": self._card.capability, "files": files}
            self._made[key] = recall(self._kept, question, count)
        answer: Value = self._made[key]
        return answer

    # -- on the card ------------------------------------------------------------------------------------------------

    def _training(self, config: Config, lanes: int) -> Count:
        train = replace(config.train, grad_accum=1, steps=max(config.train.steps, 4), optimizer="adamw")
        pictures = self._pictures(config.model.resolution, config.train.batch_size)
        with self._model(config) as (card, model):
            training = training_request(
                replace(config, train=train), pictures, "a photo of sks dog", pictures if config.prior.weight else ()
            )
            with memory.copies(training, lanes, model, self._store) as loop:
                loop.microbatch()  # makes the optimizer's state
                card.forget()
                card.peak = card.allocated
                loop.microbatch()
            return Count(Counter(card.operations), card.peak, measured.key(training, model))

    def _drawing(self, config: Config, images: int, steps: int) -> Count:
        sample = config.sample
        with self._model(config) as (card, model):
            with torch.no_grad():
                text = model.encode(model.tokenize(["a photo of a dog"]))
                negative = model.unconditional("") if model.guided(sample.guidance_scale) else None
            rows, none = (None if each is None else model.collate([(each, [images])]) for each in (text, negative))
            assert rows is not None
            del text, negative
            if model.crowded or config.model.family not in ("sd", "sdxl"):
                model.release(*model.family.encoders)
            side = sample.resolution
            batch = Batch(rows, none, tuple(range(images)), steps, sample.guidance_scale, side, side)
            pipe = model.pipeline(sample.sampler)
            card.forget()
            card.peak = card.allocated
            model.draw(pipe, batch)
            return Count(Counter(card.operations), card.peak)

    def _metrics(self, config: Config) -> Count:
        evaluate = config.evaluate
        paths = self._pictures(config.sample.resolution, 2)
        card = PretendedCard(memory=_ENOUGH, capability=self._card.capability)
        settings = (
            replace(evaluate.dino, weights="random"),
            replace(evaluate.clip, weights=evaluate.clip.weights and "random"),
            replace(evaluate.lpips, trunk="random"),
        )
        with card:
            dino, clip, lpips = (open_backbone(each, torch.device("cuda"), None) for each in settings)
            card.forget()
            card.peak = card.allocated
            many = [paths[number % 2] for number in range(evaluate.batch_size)]
            dino.embed_images(many, evaluate.batch_size)
            clip.embed_images(many, evaluate.batch_size)
            lpips.mean_distances(paths, evaluate.batch_size)
            return Count(Counter(card.operations), card.peak)

    @contextmanager
    def _model(self, config: Config) -> Iterator[tuple[PretendedCard, Model]]:
        """A base model without weights, on a card of its own."""
        card = PretendedCard(memory=_ENOUGH, capability=self._card.capability)
        settings = config.model
        quantize = settings.quantize
        published = PUBLISHED.get(settings.path)
        if published is not None:
            name = settings.path.replace("/", "--")
            if not (self._folder / name).exists():
                hollow.write(self._folder / name, published, settings.family)
            settings = replace(settings, path=str(self._folder / name), revision=None, variant=None)
        elif settings.path != "random" and not locate(settings.path).exists():
            raise ConfigError(
                f"model.path={settings.path}: its sizes are not known here; give the folder of a downloaded "
                f"pipeline, or one of {', '.join(PUBLISHED)}"
            )
        settings = replace(settings, device="cuda", quantize=None if quantize == "nf4" else quantize)
        try:
            with card, hollow.parts_without_weights(card, quantize):
                yield card, models.load(settings, self._store)
        finally:
            models.forget()

    def _pictures(self, side: int, count: int) -> tuple[Path, ...]:
        paths = tuple(self._folder / f"{side}-{number}.png" for number in range(max(count, 1)))
        for number, path in enumerate(paths):
            if not path.exists():
                Image.fromarray(np.full((side, side, 3), number % 256, np.uint8)).save(path)
        return paths
