"""What a sweep will take, before it starts: images, time and disk, by what this machine noted of earlier work.

Only what is not in the store counts. Nothing is loaded for it but what planning looks at anyhow; nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from dbexp import models
from dbexp.config.fields import keyed
from dbexp.config.schema import Config
from dbexp.core.errors import byte_size, count
from dbexp.core.hashing import key_of
from dbexp.core.progress import duration
from dbexp.core.rates import Rates, device_name
from dbexp.evaluate import evaluate
from dbexp.models import Model
from dbexp.pipeline import elsewhere, prepare
from dbexp.pipeline.plan import Plan, PlannedRun
from dbexp.pipeline.requests import prior_request, sample_request
from dbexp.sample import sets
from dbexp.sample.shots import Sampling
from dbexp.train import measured
from dbexp.train.packing import MOST_LANES_ON_GPU
from dbexp.train.result import inputs_of, result_of
from dbexp.train.start import untrained

_TITLES = {"prior": "class images", "train": "training", "sample": "sampling", "evaluate": "metrics"}
JOB = "job"
"""What a run takes beside its stages."""


class Estimates(Protocol):
    """What is estimated where nothing was measured; None where nothing can be said. Seconds."""

    def train(self, config: Config, lanes: int) -> float | None:
        """Of a lane's share of a forward and backward pass."""

    def draw(self, config: Config) -> float | None:
        """Of one sampling step of an image by `config.model.path`."""

    def evaluate(self, config: Config) -> float | None:
        """Of the metrics of an image."""


@dataclass
class Forecast:
    """Of all that a sweep has left to do.

    Attributes:
        images: to draw.
        seconds: stage -> of all runs; None: that is not known yet. Stages with nothing to do are left out.
        disk: bytes; None: likewise.
        estimated: whether some of it is an estimate, and not measured here.
    """

    images: int = 0
    seconds: dict[str, float | None] = field(default_factory=dict)
    disk: float | None = 0.0
    estimated: bool = False

    def add(self, stage: str, seconds: float | None) -> None:
        """Take something into account that has to be done."""
        before = self.seconds.get(stage, 0.0)
        self.seconds[stage] = None if before is None or seconds is None else before + seconds

    def add_disk(self, size: float | None) -> None:
        """Likewise."""
        self.disk = None if self.disk is None or size is None else self.disk + size

    def __str__(self) -> str:
        """In a sentence."""
        if not self.seconds:
            return "nothing is left to compute"
        stages = {stage: self.seconds[stage] for stage in _TITLES if stage in self.seconds}
        known = {stage: seconds for stage, seconds in self.seconds.items() if seconds is not None}
        images = [count(self.images, "picture")] if self.images else []
        if not set(known) - {JOB}:
            return (
                f"to do: {', '.join([*images, 'time and disk not known yet'])} (nothing like it was made here before)"
            )
        parts = [
            f"{_TITLES[stage]} {'not known yet' if seconds is None else duration(seconds)}"
            for stage, seconds in stages.items()
        ]
        whole = "" if len(stages) == 1 else f" ({', '.join(parts)})"
        least = "more than " if None in stages.values() else "about "
        disk = "disk not known yet" if self.disk is None else f"{byte_size(int(self.disk))} of disk"
        source = "estimated, within a factor of 2" if self.estimated else "as this machine took before"
        return f"to do: {', '.join([*images, least + duration(sum(known.values())) + whole, disk])}; {source}"


def forecast(
    plan: Plan,
    looked_at: Mapping[int, Config | None],
    device: str | None,
    workers: int = 1,
    estimates: Estimates | None = None,
) -> Forecast:
    """What the runs of a plan have left to do.

    Args:
        plan: of the sweep.
        looked_at: number of a run -> its config as this process may look at it, see `Plan`.
        device: `device_name` of where they will run; None: that of this process's device.
        workers: packs at a time.
        estimates: for what was not measured.
    """
    told = Forecast()
    sights = {run.number: _Sight(run, looked_at[run.number], device, estimates) for run in plan.runs}
    for members in plan.packs:
        _add_pack(told, [sights[run.number] for run in members])
    trained = {run.number for run in plan.trained}
    drawn: set[str] = set()
    for number, sight in sights.items():
        new = 0
        for stage, sampling, lora in sight.undrawn(number in trained):
            key = key_of({"set": [stage, keyed(sampling), lora, sight.base(stage)]})
            if key not in drawn:
                drawn.add(key)
                told.add(stage, _times(_size(sampling), sight.seconds_of_image(stage, sampling)))
                told.add_disk(_times(_size(sampling) * sampling.resolution**2, sight.bytes_of_pixel(stage)))
                told.images += _size(sampling)
            new += bool(lora)
        if new:
            told.add("evaluate", sight.seconds_of_metrics())
            told.add(JOB, sight.rate(work_of_job()) or 0.0)
    told.seconds = {stage: _times(1 / workers, seconds) for stage, seconds in told.seconds.items()}
    told.estimated = any(sight.estimated for sight in sights.values())
    return told


def work_of_job() -> dict[str, object]:
    """The kind of work that a run is beside its stages, as `Rates` has it."""
    return {"work": JOB}


def work_of_lora(config: Config, model: Model) -> dict[str, object]:
    """The kind of files that LoRAs are, as `Rates` has it: bytes for each rank."""
    return {"bytes": "lora", "model": model.identity, "sites": config.lora.sites, "text": config.lora.text_encoder}


def _add_pack(told: Forecast, members: Sequence[_Sight]) -> None:
    lanes: dict[str, _Sight] = {}
    for sight in members:
        key = sight.run.trajectory
        if key not in lanes or lanes[key].passes < sight.passes:
            lanes[key] = sight
        told.add_disk(_times(1 + sight.checkpoints, sight.bytes_of_lora()))
    for sight in lanes.values():
        told.add("train", _times(sight.passes, sight.seconds_of_pass(len(lanes))))


def _times(number: float, value: float | None) -> float | None:
    return None if value is None else number * value


def _size(sampling: Sampling) -> int:
    return len(sampling.prompts) * sampling.images_per_prompt


class _Sight:
    """A run as far as it can be seen before it starts."""

    def __init__(self, run: PlannedRun, seen: Config | None, device: str | None, estimates: Estimates | None) -> None:
        self.run, self.config, self.estimates = run, seen or run.config, estimates
        self.estimated = False
        self.store = prepare.open_store(self.config)
        self.model: Model | None = None if seen is None else models.load(seen.model, self.store)
        self.draws: Model | None = None if seen is None else prepare.drawer(seen, self.store)
        self._rates = Rates(self.store.root)
        self._device = device or (None if self.model is None else device_name(self.model.device))

    def drawer(self, stage: str) -> Model | None:
        """The base model that draws the images of a stage."""
        return self.model if stage == "prior" else self.draws

    def base(self, stage: str) -> str:
        """What they depend on of it, as far as it is known here."""
        model = self.drawer(stage)
        return self.config.model.path if model is None else f"{model.identity} {model.dtype}"

    def rate(self, work: Mapping[str, object]) -> float | None:
        """What was noted of a kind of work on the device."""
        return None if self._device is None else self._rates.of({**work, "device": self._device})

    def _or_estimated(self, measured: float | None, estimate: Callable[[Estimates], float | None]) -> float | None:
        if measured is not None or self.estimates is None:
            return measured
        estimated = estimate(self.estimates)
        self.estimated |= estimated is not None
        return estimated

    # -- training ---------------------------------------------------------------------------------------------------

    @property
    def passes(self) -> int:
        """Forward and backward passes of its training."""
        return self.config.train.steps * self.config.train.grad_accum

    def seconds_of_pass(self, lanes: int) -> float | None:
        """Of its share of a pass of so many lanes; by the nearest number of lanes that was measured."""
        noted = None
        if self.model is not None:
            works = [
                (abs(other - lanes), self.rate(measured.work_of(self.config, other, self.model)))
                for other in range(1, MOST_LANES_ON_GPU + 1)
            ]
            noted = min(((far, rate) for far, rate in works if rate is not None), default=(0, None))[1]
        return self._or_estimated(noted, lambda estimates: estimates.train(self.config, lanes))

    @property
    def checkpoints(self) -> int:
        """LoRA files besides the last one."""
        every = self.config.train.checkpoint_every
        return (self.config.train.steps - 1) // every if every else 0

    def bytes_of_lora(self) -> float | None:
        """Of a file of its LoRA."""
        each = None if self.model is None else self._rates.of(work_of_lora(self.config, self.model))
        return _times(self.config.lora.rank, each)

    # -- images -----------------------------------------------------------------------------------------------------

    def undrawn(self, is_trained: bool) -> Iterator[tuple[str, Sampling, list[str]]]:
        """(stage, set, what it is drawn with) of the sets of images that are not in the store."""
        of_prior, asked = prior_request(self.config), sample_request(self.config)
        if of_prior is not None and of_prior.path is None and not self._has("prior", of_prior.sampling, None):
            yield "prior", of_prior.sampling, []
        lora = self._lora() if is_trained else None
        for sampling in (asked.sampling, asked.class_sampling):
            if sampling is None:
                continue
            if lora is None or not self._has("sample", sampling, lora):
                yield "sample", sampling, [self.run.trajectory, str(self.config.train.steps), str(asked.lora_scale)]
            with_base = self.config.sample.base or sampling is asked.class_sampling
            if with_base and not self._has("sample", sampling, None):
                yield "sample", sampling, []

    def _lora(self) -> Path | None:
        if self.model is None or self.draws is None:
            return None
        brought = elsewhere.in_place(self.config, self.draws, self.store)
        if brought is not None:
            return untrained(brought, self.model).lora
        training = prepare.find_training(self.config, self.model, self.store)
        folder = training and self.store.find("train", inputs_of(training, self.model))
        return result_of(folder).lora if folder else None

    def _has(self, stage: str, sampling: Sampling, lora: Path | None) -> bool:
        model, scale = self.drawer(stage), self.config.sample.lora_scale
        return model is not None and sets.is_there(stage, sampling, model, self.store, lora, scale)

    def seconds_of_image(self, stage: str, sampling: Sampling) -> float | None:
        """Of one image of a set."""
        model = self.drawer(stage)
        noted = None if model is None else self.rate(sets.work_of(sampling, model, self.config.sample.compile))
        config = self.config if stage == "prior" else replace(self.config, model=models.drawing(self.config.model))
        return _times(sampling.steps, self._or_estimated(noted, lambda estimates: estimates.draw(config)))

    def bytes_of_pixel(self, stage: str) -> float | None:
        """Of the files of its images."""
        model = self.drawer(stage)
        return None if model is None else self._rates.of(sets.files_of(model))

    # -- the rest ---------------------------------------------------------------------------------------------------

    def seconds_of_metrics(self) -> float | None:
        """Of all of its images."""
        asked = sample_request(self.config)
        images = sum(map(_size, filter(None, (asked.sampling, asked.class_sampling))))
        noted = self.rate(evaluate.work_of(self.config.evaluate))
        return _times(images, self._or_estimated(noted, lambda estimates: estimates.evaluate(self.config)))
