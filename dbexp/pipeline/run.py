"""One run, told in order: dataset, prior, train, sample, evaluate, tracking.

Whatever is expensive is found in the store when it was made before, by this run or another, so the same command again
goes on where it was stopped. The run's folder gets links to it, one sub-folder per stage.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dbexp import dataset, tracking
from dbexp.compare import table
from dbexp.config.schema import Config
from dbexp.core.device import main_process_first, processes
from dbexp.core.errors import listed
from dbexp.core.files import link_tree
from dbexp.core.rates import Rates, device_name
from dbexp.core.store import MANIFEST, Store
from dbexp.dataset import Subject
from dbexp.evaluate import evaluate, objective
from dbexp.evaluate.report import Report, summary
from dbexp.models import Model
from dbexp.pipeline import elsewhere, forecast, prepare, view
from dbexp.pipeline.pictures import joined, link_inputs, sample_all
from dbexp.pipeline.requests import prior_request, sample_request
from dbexp.runs.outcome import Outcome
from dbexp.sample import prior
from dbexp.sample.sample import sample_cost
from dbexp.train.data import Training
from dbexp.train.result import Trained
from dbexp.train.start import untrained
from dbexp.train.train import train

log = logging.getLogger(__name__)

_warned: set[str] = set()
"""What the user of this process has read: the runs of a sweep need not all say it."""


ready = prepare.ready


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
        Column of the metric table, or objective -> value; empty in processes other than the first.

    Raises:
        ConfigError: what the user can mend; nothing was half-written.
        TrainingDiverged, Interrupted: see `train`.
    """
    outcome, times, begun = Outcome.of(config, folder, overrides), Times(), time.perf_counter()
    config, run_folder = outcome.config, outcome.folder
    with outcome.recorded():
        store, model, backbones = ready(config)
        draws = prepare.drawer(config, store)
        with times.measure("dataset"):
            subject = dataset.load(config.dataset, store)
        _warn(prepare.warnings(config, subject, model, store), again=sweep is None)
        with times.measure("prior"), main_process_first():
            prior_images = prior.prior_images(prior_request(config), model, store)
        if processes()[0] > 0:
            _obtain(config, subject, prior_images, model, store, tracking.Disabled())
            return {}
        link_inputs(run_folder, subject, prior_images)
        with tracking.start(config, folder=folder, name=outcome.name, group=sweep, overrides=overrides) as tracker:
            with times.measure("train"):
                trained = _obtain(config, subject, prior_images, model, store, tracker)
            link_tree(trained.folder, run_folder.train, skip=MANIFEST)
            with times.measure("sample"):
                pictures = sample_all(outcome, subject, trained.lora, draws, store)
            with times.measure("evaluate"):
                report = evaluate.find_or_evaluate(pictures, backbones, config.evaluate, store, model.device)
            report = replace(report, label=joined(config.model.label, report.label))
            drawn = sample_cost(sample_request(config), draws, trained.lora, store)
            outcome.finished(subject, model, trained, report, times.seconds, drawn, draws)
            tracker.result()
        _note(config, trained, model, store, time.perf_counter() - begun, sum(times.seconds.values()))
    if sweep is None:
        _print(outcome, report, tracker.lacks)
    objectives = {name: objective.value(report.rows, name) for name in config.objective}
    return summary(report) | objectives


def _note(config: Config, trained: Trained, model: Model, store: Store, seconds: float, stages: float) -> None:
    """Note what a run took beside its stages, for later sweeps; not of one that found everything.

    Args:
        seconds: of all of it.
        stages: of its stages.
    """
    if stages > seconds / 2:
        rates = Rates(store.root)
        rates.note({**forecast.work_of_job(), "device": device_name(model.device)}, 1, seconds - stages)
        rates.note(forecast.work_of_lora(config, model), config.lora.rank, trained.lora.stat().st_size)


def _warn(sentences: Iterable[str], *, again: bool) -> None:
    """Log warnings; the runs of a sweep, which share most of them, log each once."""
    for sentence in sentences:
        if again or sentence not in _warned:
            log.warning("%s", sentence)
        _warned.add(sentence)


def _obtain(
    config: Config,
    subject: Subject,
    prior_images: Sequence[Path],
    model: Model,
    store: Store,
    tracker: tracking.Tracker,
) -> Trained:
    """The LoRA of a run: trained, found, or brought along."""
    draws = prepare.drawer(config, store)
    lora = elsewhere.in_place(config, draws, store)
    if lora is not None:
        return untrained(lora, draws)
    return _train(prepare.training_of(config, subject, prior_images, model, store), model, store, tracker)


def _train(training: Training, model: Model, store: Store, tracker: tracking.Tracker) -> Trained:
    """Train, or find what was trained before; the tracker gets the whole history either way."""
    count = 0

    def on_rows(number: int, rows: Sequence[Mapping[str, float]]) -> None:
        nonlocal count
        count += len(rows)
        tracker.train(rows)

    (trained,) = train([training], model, store, on_rows)
    if isinstance(trained, Exception):
        raise trained
    # rows of an earlier, interrupted attempt, or of another run with the same settings, come now
    if count < len(trained.history):
        tracker.train(trained.history[: len(trained.history) - count])
    return trained


def _print(outcome: Outcome, report: Report, lacks: Sequence[str]) -> None:
    """What somebody who waited wants to see: the table, the pictures, and where to look next.

    Args:
        lacks: what the dashboard did not get.
    """
    folder = outcome.folder
    table.show([(outcome.name, report)])
    lines = [
        f"contact sheet  {folder.contact_sheet}",
        f"metrics        {folder.metrics}",
        f"LoRA           {folder.lora}",
    ]
    if lacks:
        lines.append(
            f"dashboard      lacks {listed(lacks)}; dbexp-compare {folder.path} sync=true sends what is missing"
        )
    elif outcome.config.tracking.mode == "offline":
        lines.append(f"dashboard      dbexp-compare {folder.path} sync=true")
    print("\n" + "\n".join(lines), flush=True)
