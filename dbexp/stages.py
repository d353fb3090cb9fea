"""One run, told in order: dataset, prior, train, sample, evaluate, tracking.

Whatever is expensive is found in the store when it was made before, by this run or another, so the same command again
goes on where it was stopped. The run's folder gets links to it, one sub-folder per stage.
"""

from __future__ import annotations

import errno
import json
import logging
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from dbexp import dataset, evaluate, live, models, prior, provenance, sample, table, tracking
from dbexp.config import Config, advice, fill, plain
from dbexp.contact_sheet import Column, contact_sheet
from dbexp.dataset import Subject
from dbexp.device import main_process_first, processes
from dbexp.errors import ConfigError, Interrupted, Problems, TrainingDiverged
from dbexp.evaluate import Backbones, Pictures, Report
from dbexp.lane import Task
from dbexp.metrics import COLUMNS, ImageScores
from dbexp.metrics.cache import DiskCache
from dbexp.models import Model
from dbexp.oracle import oracle_samples
from dbexp.sample import Samples
from dbexp.store import Store, file_hash, key_of, link, link_tree, write_atomic
from dbexp.train import Trained, train

log = logging.getLogger(__name__)

TRACEBACK = "traceback.log"
"""In a run's folder: where an unexpected error came from."""
_STOPS = (Interrupted, KeyboardInterrupt, SystemExit)
# what a full or read-only disk says; anything else is a fault of ours and keeps its traceback
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


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
    config = _named(config)
    name = tracking.run_name(config, overrides)
    times = _Times()
    with _failures(config, folder, overrides), _disk_errors(folder):
        check_inputs(config)
        store = open_store(config)
        model, backbones = load(config, store)
        with times.measure("dataset"):
            subject = dataset.load(config.dataset, store)
        for sentence in _warnings(config, subject, model):
            log.warning("%s", sentence)
        with times.measure("prior"), main_process_first():
            class_images = prior.class_images(config, model, store)
        if processes()[0] > 0:
            _train(config, subject, class_images, model, store, tracking.Disabled())
            return {}
        for number, path in enumerate(subject.paths):
            link(path, folder / "dataset" / f"{number:02d}{path.suffix.lower()}")
        for path in class_images:
            link(path, folder / "prior" / path.name)
        with tracking.start(config, folder=folder, name=name, group=sweep, overrides=overrides) as tracker:
            with times.measure("train"), _last_good(folder / "train"):
                trained = _train(config, subject, class_images, model, store, tracker)
            link_tree(trained.folder, folder / "train")
            with times.measure("sample"):
                pictures, sheet = _sample(config, subject, trained, model, store, folder, name)
            with times.measure("evaluate"):
                report = evaluate.evaluate(pictures, backbones, config.evaluate, DiskCache(store.root / "features"))
            report = replace(report, label=_label(config, report))
            _write(config, subject, model, trained, report, folder, times, name, overrides)
            tracker.result(report, contact_sheet=sheet, lora=folder / "train" / "lora.safetensors")
    if sweep is None:
        _print(name, report, folder, config)
    return evaluate.summary(report)


def check_inputs(config: Config) -> None:
    """Everything that is wrong and can be known without weights, in one message."""
    problems = Problems()
    for name in config.objective.split(","):
        columns = ", ".join(COLUMNS)
        problems.require(name.strip() in COLUMNS, f"objective={config.objective}: choose among {columns}")
    problems.messages += dataset.problems(config.dataset)
    try:
        sample.prompts(config)
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
            backbones = evaluate.load_backbones(config.evaluate, model.device)
    except ConfigError as error:
        problems.messages += error.problems
    problems.raise_if_any()
    assert model is not None and backbones is not None
    return model, backbones


def _warnings(config: Config, subject: Subject, model: Model) -> Iterator[str]:
    """Allowed, but rarely meant."""
    yield from advice(config, len(subject.paths))
    yield from dataset.warnings(subject, config.model.resolution)
    yield from sample.warnings(config, model)
    count = model.token_count(subject.token)
    if count > 1:
        yield (
            f"dataset.token={subject.token} is {count} tokens of this text encoder; a rare word of one token, such as "
            "sks, binds faster"
        )


def _train(
    config: Config,
    subject: Subject,
    class_images: tuple[Path, ...],
    model: Model,
    store: Store,
    tracker: tracking.Tracker,
) -> Trained:
    task = _task(config, subject, class_images)
    live = 0

    def on_rows(number: int, rows: Sequence[Mapping[str, float]]) -> None:
        nonlocal live
        live += len(rows)
        tracker.train(rows)

    (trained,) = train([task], model, store, on_rows)
    if isinstance(trained, Exception):
        raise trained
    # rows of an earlier, interrupted attempt, or of another run with the same settings, were not seen live
    if live < len(trained.history):
        tracker.train(trained.history[: len(trained.history) - live])
    return trained


def _task(config: Config, subject: Subject, class_images: tuple[Path, ...]) -> Task:
    return Task(config, subject.paths, subject.prompt, class_images, fill(config.prior.prompt, config.dataset))


def make_task(config: Config, model: Model, store: Store) -> Task:
    """What a run trains on, with its class images drawn if they are not there: for training it in a pack.

    Raises:
        ConfigError: as `run` would.
    """
    return _task(config, dataset.load(config.dataset, store), prior.class_images(config, model, store))


def find_task(config: Config, model: Model, store: Store) -> Task | None:
    """The same, if nothing has to be drawn for it."""
    class_images = prior.find_class_images(config, model, store)
    return None if class_images is None else _task(config, dataset.load(config.dataset, store), class_images)


def open_store(config: Config) -> Store:
    """The store of a config."""
    return Store(Path(config.store) if config.store else None)


def _sample(
    config: Config, subject: Subject, trained: Trained, model: Model, store: Store, folder: Path, name: str
) -> tuple[Pictures, Path]:
    """All pictures of a run, linked into its folder, and its contact sheet."""
    place = folder / "sample"
    samples = _linked(sample.sample_prompts(config, model, trained.lora, store), place)
    base = _linked(sample.sample_prompts(config, model, None, store), place / "base") if config.sample.base else None
    class_on = _linked_files(sample.sample_class(config, model, trained.lora, store), place / "class")
    class_off = _linked_files(sample.sample_class(config, model, None, store), place / "class_base")
    columns = [Column("base model", base.images, limit=1)] if base else []
    columns.append(Column(name, samples.images))
    sheet = place / "contact_sheet.png"
    label = _joined(config.model.label, config.evaluate.label)
    contact_sheet(columns, sheet, title=f"{subject.name}: {name}", label=label, real=subject.paths)
    pictures = Pictures(
        real=subject.paths,
        samples=samples.images,
        base_samples=base.images if base else None,
        class_images=class_on,
        class_images_base=class_off,
        token=subject.token,
        class_noun=subject.class_noun,
        groups=samples.groups,
        oracle_samples=oracle_samples(config.dataset, samples.prompts, config.sample.images_per_prompt, store),
    )
    return pictures, sheet


def _linked(samples: Samples, place: Path) -> Samples:
    """The same samples as files of the run's folder."""
    images = {
        prompt: _linked_files(paths, place / paths[0].parent.name) for prompt, paths in samples.images.items() if paths
    }
    return replace(samples, folder=place, images=images)


def _linked_files(paths: Sequence[Path], place: Path) -> tuple[Path, ...]:
    for path in paths:
        link(path, place / path.name)
    return tuple(place / path.name for path in paths)


def _label(config: Config, report: Report) -> str | None:
    return _joined(config.model.label, report.label)


def _joined(*labels: str | None) -> str | None:
    """Labels that say different things, each once."""
    return "; ".join(dict.fromkeys(label for label in labels if label)) or None


def _write(
    config: Config,
    subject: Subject,
    model: Model,
    trained: Trained,
    report: Report,
    folder: Path,
    times: _Times,
    name: str,
    overrides: Sequence[str],
) -> None:
    """metrics.json with everything the numbers depend on, then result.json, whose presence means the run is done."""
    settings = plain(config)
    record = {
        "report": json.loads(_relative(report, folder).to_json()),
        "config": settings,
        "config_hash": key_of(settings),
        "model": {"name": model.name, "identity": model.identity, "dtype": str(model.dtype)},
        "images": dict(zip((path.name for path in subject.paths), subject.hashes, strict=True)),
        "lora": file_hash(trained.lora),
        "train": trained.record,
        "seconds": times.seconds,
        "memory": provenance.peak_memory(model.device),
        "provenance": provenance.collect(model.device),
    }
    write_atomic(folder / "evaluate" / "metrics.json", json.dumps(record, indent=1, ensure_ascii=False))
    result = {
        "name": name,
        "overrides": list(overrides),
        "status": "finished",
        "label": report.label,
        "metrics": {column: _json_number(value) for column, value in evaluate.summary(report).items()},
    }
    write_atomic(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))


def _json_number(value: float) -> float | None:
    return None if value != value else value  # NaN differs from itself


def _relative(report: Report, folder: Path) -> Report:
    """The report with paths inside the run's folder, which may then be moved; the subject's pictures by name alone."""

    def short(path: str) -> str:
        inside = Path(path).is_relative_to(folder)
        return Path(path).relative_to(folder).as_posix() if inside else Path(path).name

    def shortened(pictures: Iterable[ImageScores]) -> tuple[ImageScores, ...]:
        return tuple(replace(one, path=short(one.path), nearest=one.nearest and short(one.nearest)) for one in pictures)

    copies = tuple(replace(copy, path=short(copy.path), nearest=short(copy.nearest)) for copy in report.copies)
    images, of_class = shortened(report.images), shortened(report.class_images)
    return replace(report, images=images, class_images=of_class, copies=copies)


def _print(name: str, report: Report, folder: Path, config: Config) -> None:
    """What somebody who waited wants to see: the table, the pictures, and where to look next."""
    table.show([(name, report)])
    lines = [
        f"contact sheet  {folder / 'sample' / 'contact_sheet.png'}",
        f"metrics        {folder / 'evaluate' / 'metrics.json'}",
        f"LoRA           {folder / 'train' / 'lora.safetensors'}",
    ]
    if config.tracking.mode == "offline":
        lines.append(f"dashboard      wandb sync {folder / tracking.FOLDER}/wandb/offline-run-*")
    print("\n" + "\n".join(lines), flush=True)


class _Times:
    """Seconds of each stage, by its name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time the block."""
        live.current().stage(stage)
        started = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - started, 3)


@contextmanager
def _failures(config: Config, folder: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Leave a result.json that says why the block did not end, so that a folder of runs tells its own story.

    What is a fault of ours leaves its traceback too. The story of an earlier attempt is taken back first.
    """
    for earlier in ("result.json", TRACEBACK):
        with suppress(OSError):  # a folder that cannot be written is told of by whoever writes first
            (folder / earlier).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        expected = isinstance(error, (*_STOPS, ConfigError, TrainingDiverged))
        with suppress(OSError):  # the disk may be what failed
            if not expected:
                write_atomic(folder / TRACEBACK, traceback.format_exc())
        record_failure(config, folder, overrides, error)
        raise


def record_failure(config: Config, folder: Path, overrides: Sequence[str], error: BaseException) -> None:
    """Leave a result.json that says why a run did not end: stopped by a signal, diverged, or failed otherwise.

    Args:
        config: of the run.
        folder: of the run.
        overrides: as on the command line.
        error: what ended it.
    """
    config = _named(config)
    others = "diverged" if isinstance(error, TrainingDiverged) else "failed"
    result = {
        "name": tracking.run_name(config, overrides),
        "overrides": list(overrides),
        "status": "stopped" if isinstance(error, _STOPS) else others,
        "error": f"{type(error).__name__}: {error}",
        "config": plain(config),
    }
    with suppress(OSError):  # the disk may be what failed
        write_atomic(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))


def _named(config: Config) -> Config:
    """The config with the name that tables give its subject."""
    return replace(config, dataset=replace(config.dataset, name=dataset.subject_name(config.dataset)))


@contextmanager
def _last_good(folder: Path) -> Iterator[None]:
    """When training diverges, leave the last good checkpoint where the LoRA would have been."""
    try:
        yield
    except TrainingDiverged as error:
        if error.checkpoint is not None:
            link(error.checkpoint, folder / "checkpoints" / error.checkpoint.name)
        raise


@contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    """A full or read-only disk is the user's to mend: say where, and that nothing is lost."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = error.filename or folder
        raise ConfigError(
            f"{where}: {error.strerror}; free some space or choose another place with store=FOLDER (the cache) or "
            "hydra.run.dir=FOLDER (the run), then repeat the command: it goes on where it stopped"
        ) from error
