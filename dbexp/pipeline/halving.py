"""Halving: at a few steps on the way all runs of a sweep are judged, and only those that promise something go on.

A rung is a step at which every run that is still in the race is judged as cheaply as may be: on a few prompts from the
same noise for all, or by the loss on fixed pictures, times and noise. All of them reach it before any goes on, in packs
of those that are left, so that slots are full and each decision knows of every run. A rung is an ordinary training,
shorter by its steps alone: it is in the store like any other, and the state of its lanes is kept, so that the next rung
goes on from there. So nothing here must be remembered: a race that was killed finds every judgement again.
"""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dbexp import dataset, models
from dbexp.config.families import FAMILIES
from dbexp.config.schema import Config
from dbexp.core.errors import Interrupted, first_line
from dbexp.core.files import link
from dbexp.core.store import Store
from dbexp.evaluate import evaluate, objective
from dbexp.evaluate.columns import column_of, terms
from dbexp.evaluate.pictures import Pictures
from dbexp.models import Model
from dbexp.pipeline import prepare, sweep
from dbexp.pipeline.plan import PlannedRun
from dbexp.pipeline.requests import sample_request
from dbexp.runs import race as race_files
from dbexp.runs.outcome import Outcome
from dbexp.sample import sample
from dbexp.train import lr_schedule, memory, packing
from dbexp.train.fixed_loss import fixed_loss, rows
from dbexp.train.result import Trained, inputs_of, result_of

log = logging.getLogger(__name__)

_OF_SAMPLES_ALONE = {"dino", "clip_i", "clip_t"}
"""Columns that need neither class samples nor images of the base model."""
_FORWARD_AND_BACKWARD = 3
"""Forward passes that a row of a training step costs: a backward pass counts two (Kaplan et al., arXiv 2001.08361,
section 2.1)."""

Decide = Callable[[Mapping[int, Sequence[float]], int], Collection[int]]
"""(number of a run -> its values at the rungs so far, place of the last rung) -> numbers of runs that stop there."""
Reach = Callable[[Sequence[PlannedRun]], Mapping[int, tuple["Judgement", Path | None]]]
"""Runs that end at a rung -> number of each that was judged there -> `judged`."""


@dataclass(frozen=True)
class Judging:
    """How runs are judged at a rung.

    Attributes:
        by: draw: the objective, of a few images; loss: the loss on fixed pictures, times and noise.
        prompts, images: how many prompts, spread over the run's, and images of each; for `draw`.
        steps: sampling steps; None: the run's own.
    """

    by: str = "draw"
    prompts: int = 4
    images: int = 1
    steps: int | None = None

    def direction(self, config: Config) -> str:
        """minimize or maximize."""
        lower = self.by == "loss" or column_of(config.objective[0]).better == "lower"
        return "minimize" if lower else "maximize"


@dataclass(frozen=True)
class Judgement:
    """What a run was found to be worth at a rung.

    Attributes:
        step: optimizer step of the rung.
        value: of what it was judged by; NaN where it could not be judged.
        low, high: interval; NaN where there is none.
        rests_on: what the value was worked out from, in words.
        passes: rows that went through the denoiser forward, for this alone.
    """

    step: int
    value: float
    low: float = math.nan
    high: float = math.nan
    rests_on: str = ""
    passes: int = 0


@dataclass(frozen=True)
class Stop:
    """Where and why a run left the race.

    Attributes:
        step, steps: optimizer steps that it made, and that it was to make.
        reason: in words.
        lora: as it was then.
    """

    step: int
    steps: int
    reason: str
    lora: Path


@dataclass(frozen=True)
class Race:
    """What came of all runs.

    Attributes:
        rungs: optimizer steps.
        column: what runs were judged by.
        judgements: number of a run -> one for each rung that it was judged at.
        stops: number of a run -> where it left; the others went on to their end.
        passes: rows through the denoiser, forward, a row of a training step as three: `training` until each stop,
            `judging`, `drawing` the images that those draw with their LoRA that went on; `training_all` and
            `drawing_all` without a race.
    """

    rungs: tuple[int, ...]
    column: str
    judgements: Mapping[int, Sequence[Judgement]]
    stops: Mapping[int, Stop]
    passes: Mapping[str, int]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rungs": list(self.rungs),
            "column": self.column,
            "runs": [
                {
                    "number": number,
                    "judgements": [{k: _finite(v) for k, v in asdict(each).items()} for each in judgements],
                    "stopped": self.stops[number].step if number in self.stops else None,
                }
                for number, judgements in sorted(self.judgements.items())
            ],
            "passes": dict(self.passes),
        }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def race(runs: Sequence[PlannedRun], rungs: Sequence[int], judging: Judging, decide: Decide, reach: Reach) -> Race:
    """Train runs from rung to rung, and stop at each those that the others leave behind.

    A search may ask for one setting twice in a batch. Equal runs take one place between them, and fare alike: with a
    place each, the copies of a good setting would push out the next one.

    Args:
        runs: of a sweep, checked.
        rungs: optimizer steps, rising.
        judging: how they are judged.
        decide: who stops.
        reach: trains runs to a rung and judges them there, here or elsewhere.

    Raises:
        Interrupted: a signal came; everything is saved.
    """
    trained, twins = _without_twins([run for run in runs if run.config.lora.path is None])
    judgements: dict[int, list[Judgement]] = {run.number: [] for run in trained}
    stops: dict[int, Stop] = {}
    for place, step in enumerate(rungs):
        racing = [run for run in trained if run.number not in stops and run.config.train.steps > step]
        at_rung = [replace(run, config=until(run.config, step)) for run in racing]
        loras: dict[int, Path] = {}
        for number, (judgement, lora) in sorted(reach(at_rung).items()):
            if lora is not None and not math.isnan(judgement.value):
                judgements[number].append(judgement)
                loras[number] = lora
        values = {number: [each.value for each in of] for number, of in judgements.items() if of}
        leaving = sorted(set(decide(values, place)) & set(loras))
        order = _best_first({number: values[number][-1] for number in loras}, judging, runs)
        for run in racing:
            if run.number in leaving:
                place_of = order.index(run.number) + 1
                reason = _reason(run, judgements[run.number][-1], judging, place_of, len(order), len(leaving))
                stops[run.number] = Stop(step, run.config.train.steps, reason, loras[run.number])
        log.info(
            "halving: at step %d %d runs were judged, %d stop: %s", step, len(loras), len(leaving), leaving or "none"
        )
    column = "loss" if judging.by == "loss" else runs[0].config.objective[0]
    passes = _passes(trained, stops, judgements)
    cost = race_files.cost([passes]) or "nothing was trained"
    for number, first in twins.items():
        judgements[number] = judgements[first]
        if first in stops:
            stops[number] = stops[first]
    log.info("halving: %d of %d runs go on; %s", len(runs) - len(stops), len(runs), cost)
    return Race(tuple(rungs), column, judgements, stops, passes)


def _without_twins(runs: Sequence[PlannedRun]) -> tuple[list[PlannedRun], dict[int, int]]:
    """The first of equal runs each, and number of another -> that of the first one it is equal to."""
    firsts: dict[str, int] = {}
    for run in runs:
        firsts.setdefault(repr(run.config), run.number)
    twins = {run.number: first for run in runs if (first := firsts[repr(run.config)]) != run.number}
    return [run for run in runs if run.number not in twins], twins


def reach(
    runs: Sequence[PlannedRun], judging: Judging, size: int | None = None
) -> dict[int, tuple[Judgement, Path | None]]:
    """Train runs to the rung that they end at, in packs of this process, and judge them there.

    Args:
        runs: as `until` leaves them.
        judging: how they are judged.
        size: most lanes of a pack; None: as memory allows.

    Raises:
        Interrupted: a signal came; everything is saved.
    """
    if runs:
        most = size or memory.most_lanes(runs[0].config.model.device)
        for pack in packing.packs([run.config for run in runs], most):
            sweep.train_pack([runs[index] for index in pack], size, keep=True)
    return {run.number: judged(run, judging) for run in runs}


def until(config: Config, step: int) -> Config:
    """The same run up to a rung: every step is as in the whole run, whose schedule it follows."""
    end = lr_schedule.decay_end(config.lr_schedule, steps=config.train.steps)
    return replace(
        config,
        train=replace(config.train, steps=step),
        lr_schedule=config.lr_schedule if end is None else replace(config.lr_schedule, horizon=end),
    )


def _best_first(values: Mapping[int, float], judging: Judging, runs: Sequence[PlannedRun]) -> list[int]:
    sign = 1 if judging.direction(runs[0].config) == "minimize" else -1
    return sorted(values, key=lambda number: (sign * values[number], number))


def _reason(run: PlannedRun, judgement: Judgement, judging: Judging, place: int, judged: int, leaving: int) -> str:
    """Why a run stopped, what that rests on, and how it goes on. No path, for results.csv has none."""
    what = "the loss on fixed noise" if judging.by == "loss" else column_of(run.config.objective[0]).title
    interval = "" if math.isnan(judgement.low) else f" [{judgement.low:.3f}, {judgement.high:.3f}]"
    return (
        f"stopped by halving at step {judgement.step} of {run.config.train.steps}: {what} {judgement.value:.3f}"
        f"{interval} of {judgement.rests_on}, place {place} of {judged}, of which {judged - leaving} went on; alone, "
        "with the same overrides, it goes on from there"
    )


# -- judging -----------------------------------------------------------------------------------------------------------


def judged(run: PlannedRun, judging: Judging) -> tuple[Judgement, Path | None]:
    """A run that came to a rung, with its LoRA there; without one where it did not, which its own job will tell of.

    Raises:
        Interrupted: a signal came.
    """
    config = run.config
    nothing = Judgement(config.train.steps, math.nan)
    try:
        store = prepare.open_store(config)
        model = models.load(config.model, store)
        training = prepare.make_training(config, model, store)
        folder = store.find("train", inputs_of(training, model))
        if folder is None:
            return nothing, None
        trained = result_of(folder)
        if judging.by == "loss":
            count = rows(training)
            rests_on = f"{len(training.images)} photographs at {count // len(training.images)} times each"
            loss = fixed_loss(training, trained.lora, model, store)
            return Judgement(config.train.steps, loss, rests_on=rests_on, passes=count), trained.lora
        return _drawn(config, trained, judging, prepare.drawer(config, store), store), trained.lora
    except Interrupted:
        raise
    except Exception as error:  # it fails again, with its own message, when it runs
        log.warning("%s: not judged at step %d: %s", run.title, config.train.steps, first_line(error, typed=True))
        return nothing, None


def _drawn(config: Config, trained: Trained, judging: Judging, model: Model, store: Store) -> Judgement:
    """The objective of a few images: the same prompts and noise for every run."""
    name = config.objective[0]
    light = set(terms(name) or [name]) <= _OF_SAMPLES_ALONE
    request = sample_request(config)
    prompts = _spread(request.sampling.prompts, judging.prompts)
    steps = judging.steps or request.sampling.steps
    images = len(prompts) * judging.images
    of_class = request.class_sampling
    few = replace(
        request,
        sampling=replace(request.sampling, prompts=prompts, images_per_prompt=judging.images, steps=steps),
        class_sampling=None if light or of_class is None else replace(of_class, images_per_prompt=images, steps=steps),
    )
    subject = dataset.load(config.dataset, store)
    pictures = Pictures(
        real=subject.paths,
        samples=sample.sample_prompts(few, model, trained.lora, store),
        base_samples=None if light else sample.sample_prompts(few, model, None, store),
        class_images=sample.sample_class(few, model, trained.lora, store),
        class_images_base=sample.sample_class(few, model, None, store),
        token=subject.token,
        class_noun=subject.class_noun,
        groups={prompt: request.groups[prompt] for prompt in prompts},
    )
    backbones = evaluate.load_backbones(config.evaluate, model.device, store)
    report = evaluate.find_or_evaluate(pictures, backbones, config.evaluate, store, model.device)
    value, row = objective.value(report.rows, name), report.rows["run"].get(name)
    low, high = (float(row.low), float(row.high)) if row else (math.nan, math.nan)
    sets = 1 if few.class_sampling is None else 2
    passes = sets * images * steps * (2 if model.guided(request.sampling.guidance_scale) else 1)
    rests_on = f"{images} images of {len(prompts)} prompts in {steps} sampling steps"
    return Judgement(config.train.steps, value, low, high, rests_on, passes)


def _spread(prompts: Sequence[str], count: int) -> tuple[str, ...]:
    """So many prompts, spread evenly over the list."""
    count = min(count, len(prompts))
    return tuple(prompts[index * len(prompts) // count] for index in range(count))


# -- what it costs, and what it leaves ---------------------------------------------------------------------------------


def _passes(
    runs: Sequence[PlannedRun], stops: Mapping[int, Stop], judgements: Mapping[int, Sequence[Judgement]]
) -> dict[str, int]:
    """See `Race.passes`. Runs that share a trajectory are counted each, unless they are equal in all else, too."""

    def training(run: PlannedRun, steps: int) -> int:
        cfg, prompts = run.config.train, 2 if run.config.prior.weight > 0 else 1
        return _FORWARD_AND_BACKWARD * steps * cfg.grad_accum * cfg.batch_size * prompts

    drawing = {run.number: final_passes(run.config) for run in runs}
    return {
        "training": sum(
            training(run, stops[run.number].step if run.number in stops else run.config.train.steps) for run in runs
        ),
        "judging": sum(each.passes for of in judgements.values() for each in of),
        "drawing": sum(passes for number, passes in drawing.items() if number not in stops),
        "training_all": sum(training(run, run.config.train.steps) for run in runs),
        "drawing_all": sum(drawing.values()),
    }


def final_passes(config: Config) -> int:
    """Rows forward of the images that a run draws with its LoRA at its end. No model is asked, for it may be elsewhere:
    a checkpoint that ignores guidance wants a guidance of 1."""
    request = sample_request(config)
    guided = config.sample.guidance_scale > 1 and not FAMILIES[config.model.family].embeds_guidance
    sets = [each for each in (request.sampling, request.class_sampling) if each is not None]
    return sum(len(each.prompts) * each.images_per_prompt * each.steps for each in sets) * (2 if guided else 1)


def leave(config: Config, folder: Path, overrides: Sequence[str], stop: Stop) -> None:
    """Leave in a run's folder that it was stopped, where and why, with its LoRA of that step.

    Args:
        config: of the run, whole.
        folder: of the run.
        overrides: as on the command line.
        stop: from the race.
    """
    outcome = Outcome.of(config, folder, overrides)
    with outcome.recorded():
        link(stop.lora, outcome.folder.checkpoints / f"step_{stop.step:06d}.safetensors")
        outcome.pruned(stop.reason)
    log.info("%s: `%s` goes on with it", outcome.name, shlex.join(["dbexp", *overrides]))


def problems(rungs: Sequence[int], judging: Judging) -> list[str]:
    """What is wrong with the settings of halving."""
    messages = []
    if list(rungs) != sorted(set(rungs)) or any(step < 1 for step in rungs):
        messages.append(f"hydra.launcher.halving.rungs={list(rungs)}: must be rising steps, as [100,200,400]")
    if judging.by not in ("draw", "loss"):
        messages.append(f"hydra.launcher.halving.judge={judging.by}: choose one of draw, loss")
    for name in ("prompts", "images", "steps"):
        value = getattr(judging, name)
        if value is not None and value < 1:
            messages.append(f"hydra.launcher.halving.{name}={value}: must be at least 1")
    return messages
