"""One run, told in order: dataset, prior, train, sample, evaluate, tracking.

Whatever is expensive is found in the store when it was made before, by this run or another, so the same command again
goes on where it was stopped. The run's folder gets links to it, one sub-folder per stage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dbexp import dataset, models, tracking
from dbexp.compare import table
from dbexp.config.check import advice
from dbexp.config.schema import Config
from dbexp.config.template import fill
from dbexp.config.values import plain
from dbexp.core.device import main_process_first, processes
from dbexp.core.errors import ConfigError, Problems
from dbexp.core.files import link, link_tree
from dbexp.core.store import MANIFEST, Store
from dbexp.dataset import Subject
from dbexp.evaluate import evaluate
from dbexp.evaluate.columns import COLUMNS
from dbexp.evaluate.evaluate import Backbones
from dbexp.evaluate.report import Report
from dbexp.models import Model
from dbexp.pipeline import pictures as run_pictures
from dbexp.pipeline import view
from dbexp.pipeline.requests import prior_request, sample_request
from dbexp.runs.folder import RunFolder
from dbexp.runs.outcome import Outcome
from dbexp.sample import prior, sample
from dbexp.train.data import Training
from dbexp.train.result import Trained
from dbexp.train.train import train

log = logging.getLogger(__name__)

_warned: set[str] = set()
"""What the user of this process has read: the jobs of a sweep need not all say it."""


class Times:
    """Seconds of each stage, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time the block, and show that its stage has begun."""
        view.current().stage(stage)
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 3)


def run(config: Config, folder: Path, overrides: Sequence[str], sweep: str | None = None) -> dict[str, float]:
    """Do everything for one config and leave it in a folder.

    Args:
        config: checked.
        folder: of the run; gets a sub-folder per stage and result.json.
        overrides: as on the command line; they name the run.
        sweep: name of the sweep that the run belongs to; its table tells of all runs, so this one prints none.

    Returns:
        Column -> value of the metric table; empty in processes other than the first.

    Raises:
        ConfigError: what the user can mend; nothing was half-written.
        TrainingDiverged, Interrupted: see `train`.
    """
    outcome, times = Outcome.of(config, folder, overrides), Times()
    config, name, place = outcome.config, outcome.name, outcome.folder
    with outcome.recorded():
        check_inputs(config)
        store = open_store(config)
        model, backbones = load(config, store)
        with times.measure("dataset"):
            subject = dataset.load(config.dataset, store)
        for sentence in _warnings(config, subject, model, store):
            if sweep is None or sentence not in _warned:
                log.warning("%s", sentence)
            _warned.add(sentence)
        with times.measure("prior"), main_process_first():
            class_images = prior.prior_images(prior_request(config), model, store)
        if processes()[0] > 0:
            _train(config, subject, class_images, model, store, tracking.Disabled())
            return {}
        for number, path in enumerate(subject.paths):
            link(path, place.subject_image(number, path))
        for path in class_images:
            link(path, place.prior / path.name)
        with tracking.start(config, folder=folder, name=name, group=sweep, overrides=overrides) as tracker:
            with times.measure("train"):
                trained = _train(config, subject, class_images, model, store, tracker)
            link_tree(trained.folder, place.train, skip=MANIFEST)
            with times.measure("sample"):
                pictures = run_pictures.gather(config, subject, trained.lora, model, store, place, name)
            with times.measure("evaluate"):
                report = evaluate.find_or_evaluate(pictures, backbones, config.evaluate, store)
            report = replace(report, label=run_pictures.joined(config.model.label, report.label))
            outcome.finished(subject, model, trained, report, times.seconds)
            tracker.result()
    if sweep is None:
        _print(name, report, place, config)
    return evaluate.summary(report)


def check_inputs(config: Config) -> None:
    """Everything that is wrong and can be known without weights, in one message."""
    problems = Problems()
    for name in config.objective:
        problems.require(name in COLUMNS, f"objective={name}: choose one of {', '.join(COLUMNS)}")
    problems.messages += dataset.problems(config.dataset)
    problems.messages += prior.problems(prior_request(config))
    try:
        sample_request(config)
    except ConfigError as error:
        problems.messages += error.problems
    problems.messages += tracking.problems(config)
    problems.raise_if_any()


def load(config: Config, store: Store) -> tuple[Model, Backbones]:
    """Base model and metric backbones, before hours are spent on a run whose metrics cannot be computed.

    Raises:
        ConfigError: with everything that is not there.
    """
    problems = Problems()
    model, backbones = None, None
    try:
        model = models.load(config.model, store)
    except ConfigError as error:
        problems.messages += error.problems
    try:
        if model is not None:
            backbones = evaluate.load_backbones(config.evaluate, model.device, store)
    except ConfigError as error:
        problems.messages += error.problems
    problems.raise_if_any()
    assert model is not None and backbones is not None
    return model, backbones


def _warnings(config: Config, subject: Subject, model: Model, store: Store) -> Iterator[str]:
    """Allowed, but rarely meant."""
    yield from advice(config, len(subject.paths))
    yield from dataset.warnings(subject, config.model.resolution)
    yield from prior.warnings(prior_request(config))
    yield from sample.token_notes(sample_request(config).prompts, subject.token, model, store)


def _train(
    config: Config,
    subject: Subject,
    class_images: tuple[Path, ...],
    model: Model,
    store: Store,
    tracker: tracking.Tracker,
) -> Trained:
    training = training_of(config, subject.paths, subject.prompt, class_images)
    live = 0

    def on_rows(number: int, rows: Sequence[Mapping[str, float]]) -> None:
        nonlocal live
        live += len(rows)
        tracker.train(rows)

    (trained,) = train([training], model, store, on_rows)
    if isinstance(trained, Exception):
        raise trained
    # rows of an earlier, interrupted attempt, or of another run with the same settings, were not seen live
    if live < len(trained.history):
        tracker.train(trained.history[: len(trained.history) - live])
    return trained


def training_of(config: Config, images: Sequence[Path], prompt: str, class_images: Sequence[Path]) -> Training:
    """What a run trains on.

    Args:
        config: of the run.
        images, prompt: the subject's pictures and their caption.
        class_images: empty without prior preservation.
    """
    nowhere = replace(config, dataset=replace(config.dataset, path=None, root=None), store=None)
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
    )


def make_training(config: Config, model: Model, store: Store) -> Training:
    """What a run trains on, with its class images drawn if they are not there: for training it in a pack.

    Raises:
        ConfigError: as `run` would.
    """
    subject = dataset.load(config.dataset, store)
    return training_of(config, subject.paths, subject.prompt, prior.prior_images(prior_request(config), model, store))


def find_training(config: Config, model: Model, store: Store) -> Training | None:
    """The same, if nothing has to be drawn for it."""
    class_images = prior.find_prior_images(prior_request(config), model, store)
    if class_images is None:
        return None
    subject = dataset.load(config.dataset, store)
    return training_of(config, subject.paths, subject.prompt, class_images)


def open_store(config: Config) -> Store:
    """The store of a config."""
    return Store(Path(config.store) if config.store else None)


def _print(name: str, report: Report, folder: RunFolder, config: Config) -> None:
    """What somebody who waited wants to see: the table, the pictures, and where to look next."""
    table.show([(name, report)])
    lines = [
        f"contact sheet  {folder.contact_sheet}",
        f"metrics        {folder.metrics}",
        f"LoRA           {folder.lora}",
    ]
    if config.tracking.mode == "offline":
        lines.append(f"dashboard      dbexp-compare {folder.path} --sync")
    print("\n" + "\n".join(lines), flush=True)
