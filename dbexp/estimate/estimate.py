"""From counts to what somebody asks: does it fit, how long does it take, what does it cost."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

from dbexp.config.fields import keyed
from dbexp.config.schema import Config
from dbexp.core.hashing import key_of
from dbexp.estimate.cards import GIB, Card
from dbexp.estimate.measure import Measure
from dbexp.estimate.roofline import is_launched_slowly, seconds
from dbexp.pipeline.requests import prior_request, sample_request
from dbexp.train import packing
from dbexp.train.measured import Fact

RESERVED = 1.2 * GIB
"""Bytes beside torch's tensors: CUDA's context, libraries and their workspaces. From 0.5 to 1.5 GiB, by the card."""
_PNG_SECONDS = 0.41e-6
"""Of a pixel: compressing an image on the host (108 ms at 512 x 512, on one core of an AMD EPYC)."""
_PNG_BYTES = 1.8
"""Of a pixel, for photographs."""
_LORA_BYTES = 4
_READING = 0.01
"""Seconds of the host for reading and scaling one image for the metrics."""


@dataclass(frozen=True)
class Group:
    """Runs of a sweep that can train together.

    Attributes:
        runs: how many.
        trajectories: lanes that they make, of which some may share one.
        lanes: most that fit at once; 0: not even one does.
        memory: lanes -> bytes of training.
        step_seconds: of an optimizer step of one lane alone, and of a pack of `lanes`.
        waits_for_host: whether the card waits for Python.
        measurements: trainings like these, on such a card, that times are corrected by.
        remedies: settings that would make a lane fit, with the bytes that it takes then.
        sampling: images at once -> bytes.
        batch: images at once that fit.
        metrics: bytes.
        seconds: stage -> of the whole group.
    """

    model: str
    resolution: int
    runs: int
    trajectories: int
    lanes: int
    memory: Mapping[int, int]
    step_seconds: tuple[float, float]
    waits_for_host: bool
    measurements: int
    remedies: Mapping[str, int]
    sampling: Mapping[int, int]
    batch: int
    metrics: int
    seconds: Mapping[str, float]
    images: int
    disk: int


@dataclass(frozen=True)
class Estimate:
    """Of a sweep.

    Attributes:
        price: of the whole; None: nobody said what an hour costs.
    """

    card: Card
    groups: tuple[Group, ...]
    price: float | None

    @property
    def seconds(self) -> float:
        """Of the whole."""
        return sum(sum(group.seconds.values()) for group in self.groups)

    @property
    def images(self) -> int:
        """Drawn in all."""
        return sum(group.images for group in self.groups)

    @property
    def disk(self) -> int:
        """Bytes in the store, the base model's files aside."""
        return sum(group.disk for group in self.groups)


def estimate(
    configs: Sequence[Config],
    card: Card,
    measure: Measure,
    price_per_hour: float | None = None,
    facts: Sequence[Fact] = (),
) -> Estimate:
    """What runs take that start with an empty store.

    Args:
        configs: checked, of a run or of all runs of a sweep.
        card: where.
        measure: counts for them.
        price_per_hour: of the card.
        facts: what was measured before, on whichever card.
    """
    groups: dict[str, list[Config]] = {}
    for config in configs:
        groups.setdefault(key_of(packing.shared(config)), []).append(config)
    told = tuple(_group(members, card, measure, facts) for members in groups.values())
    whole = Estimate(card, told, None)
    return whole if price_per_hour is None else replace(whole, price=price_per_hour * whole.seconds / 3600)


def _group(configs: Sequence[Config], card: Card, measure: Measure, facts: Sequence[Fact]) -> Group:
    trained = [config for config in configs if config.lora.path is None]
    largest = max(trained or configs, key=_size)
    lanes_of: dict[str, Config] = {}
    for config in trained:
        key = packing.trajectory(packing.planned(config))
        if key not in lanes_of or lanes_of[key].train.steps < config.train.steps:
            lanes_of[key] = config
    room = packing.MEMORY_SHARE["cuda"] * (card.memory - RESERVED)
    one, two = (measure.training(largest, lanes) for lanes in (1, 2))
    lane = max(two.peak - one.peak, 1)
    most = max(1, min(len(lanes_of), packing.MOST_LANES_ON_GPU))
    lanes = max(0, min(most, int((room - (one.peak - lane)) // lane)))
    pack = one if lanes < 2 else two if lanes == 2 else measure.training(largest, lanes)
    memory = {count: int(one.peak + (count - 1) * lane + RESERVED) for count in sorted({1, max(lanes, 1), 2, 4, 8, 16})}
    alone, together = seconds(one.operations, card), seconds(pack.operations, card)
    ratios = [
        fact.seconds / (alone + (fact.lanes - 1) * _slope(alone, together, lanes))
        for fact in facts
        if fact.key == one.key and card.title in fact.card
    ]
    correction = statistics.median(ratios) if ratios else 1.0
    alone, together = correction * alone, correction * together
    batch, sampling = _batch(largest, card, measure)
    drawn = measure.drawing(largest, max(batch, 1))
    metrics = measure.metrics(largest)
    counts = _images(configs)
    image = (largest.sample.steps * seconds(drawn.step.operations, card) + seconds(drawn.rest.operations, card)) / max(
        batch, 1
    ) + _PNG_SECONDS * largest.sample.resolution**2
    scored = counts["sample"] + len(configs)
    stages = {
        "prior": counts["prior"] * image * largest.prior.steps / largest.sample.steps,
        "train": _training_seconds(list(lanes_of.values()), max(lanes, 1), alone, together),
        "sample": counts["sample"] * image,
        "evaluate": ceil(scored / largest.evaluate.batch_size) * seconds(metrics.operations, card) + _READING * scored,
    }
    pixels = largest.sample.resolution**2
    adapters = _LORA_BYTES * measure.adapter_weights(largest)
    saves = sum(1 + _checkpoints(config) for config in trained)
    return Group(
        model=largest.model.name,
        resolution=largest.model.resolution,
        runs=len(configs),
        trajectories=len(lanes_of),
        lanes=lanes,
        memory=memory,
        step_seconds=(alone * largest.train.grad_accum, together * largest.train.grad_accum),
        waits_for_host=is_launched_slowly(pack.operations, card),
        measurements=len(ratios),
        remedies={} if lanes else _remedies(largest, room, measure),
        sampling=sampling,
        batch=batch,
        metrics=int(metrics.peak + RESERVED),
        seconds=stages,
        images=counts["prior"] + counts["sample"],
        disk=int((counts["prior"] + counts["sample"]) * pixels * _PNG_BYTES + saves * adapters),
    )


def _size(config: Config) -> tuple[int, bool, int]:
    rows = config.train.batch_size * (2 if config.prior.weight else 1)
    return rows, config.lora.text_encoder, config.lora.rank


def _slope(alone: float, together: float, lanes: int) -> float:
    """Seconds that a lane more costs; as much as the first where nothing else is known."""
    return (together - alone) / (lanes - 1) if lanes > 1 else alone


def _training_seconds(lanes: Sequence[Config], size: int, alone: float, together: float) -> float:
    """Packs of lanes of like length, each pack as long as its longest lane; a lane more costs the same each time."""
    passes = sorted((config.train.steps * config.train.grad_accum for config in lanes), reverse=True)
    slope = _slope(alone, together, size)
    total, start = 0.0, 0
    while start < len(passes):
        members = passes[start : start + size]
        ends = [*members[1:], 0]
        for running, (end, after) in enumerate(zip(members, ends, strict=True), start=1):
            total += (end - after) * (alone + (running - 1) * slope)
        start += size
    return total


def _batch(config: Config, card: Card, measure: Measure) -> tuple[int, dict[int, int]]:
    """Images at once that fit, 0 if not even one does; and images at once -> bytes."""
    asked = config.sample.batch_size
    one = measure.drawing(config, 1).step.peak
    most = measure.drawing(config, asked).step.peak if asked > 1 else one
    each = (most - one) / max(asked - 1, 1)
    sizes = {count: int(one + (count - 1) * each + RESERVED) for count in sorted({1, asked})}
    batch = asked
    while batch and one + (batch - 1) * each + RESERVED > card.memory:
        batch //= 2
    return batch, sizes


def _images(configs: Sequence[Config]) -> dict[str, int]:
    """Images that are drawn: what several runs share, once."""
    prior: dict[str, int] = {}
    sample: dict[str, int] = {}
    for config in configs:
        request = prior_request(config)
        if request is not None and request.path is None:
            prior[key_of(keyed(request.sampling))] = request.sampling.images_per_prompt
        asked = sample_request(config)
        drawn_by = config.model.sample_path
        trained = key_of(packing.planned(config))
        for sampling in (asked.sampling, asked.class_sampling):
            if sampling is None:
                continue
            count, key = len(sampling.prompts) * sampling.images_per_prompt, key_of(keyed(sampling))
            sample[f"{drawn_by} {trained} {asked.lora_scale} {key}"] = count
            if config.sample.base or sampling is asked.class_sampling:
                sample[f"{drawn_by} base {key}"] = count
    return {"prior": sum(prior.values()), "sample": sum(sample.values())}


def _remedies(config: Config, room: float, measure: Measure) -> dict[str, int]:
    """Settings, from mild to severe, that let a lane fit: the first of them that does, and those that do not help."""
    found: dict[str, int] = {}
    train = replace(config.train, gradient_checkpointing=True)
    single = replace(train, batch_size=1)
    trials = [
        ("train.gradient_checkpointing=true", replace(config, train=train)),
        ("train.gradient_checkpointing=true train.batch_size=1", replace(config, train=single)),
    ]
    trials += [
        (
            f"train.gradient_checkpointing=true train.batch_size=1 model.quantize={quantize}",
            replace(config, train=single, model=replace(config.model, quantize=quantize)),
        )
        for quantize in ("fp8", "nf4")
    ]
    for words, changed in trials:
        if changed == config:
            continue
        peak = measure.training(changed, 1).peak
        found[words] = int(peak + RESERVED)
        if peak <= room:
            break
    return found


def _checkpoints(config: Config) -> int:
    every = config.train.checkpoint_every
    return (config.train.steps - 1) // every if every else 0


def plain(told: Estimate) -> dict[str, Any]:
    """An estimate as JSON has it; bytes and seconds."""
    groups = [
        {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(group).items()}
        for group in told.groups
    ]
    return {
        "card": vars(told.card),
        "groups": groups,
        "seconds": told.seconds,
        "images": told.images,
        "disk": told.disk,
        "price": told.price,
        "method": "counted on a pretended card; times by a roofline, never measured",
    }
