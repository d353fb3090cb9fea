"""What a run leaves to say how it ended: its metrics with all they depend on, or word of why there are none."""

from __future__ import annotations

import errno
import json
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dbexp import dataset
from dbexp.config.check import plain
from dbexp.config.schema import Config
from dbexp.core import provenance
from dbexp.core.errors import ConfigError, Interrupted, TrainingDiverged
from dbexp.core.files import link, readable, write_atomic
from dbexp.core.hashing import file_hash, key_of
from dbexp.dataset import Subject
from dbexp.evaluate import evaluate
from dbexp.evaluate.report import ImageScores, Report
from dbexp.models import Model
from dbexp.runs.names import run_name
from dbexp.train.train import Trained

TRACEBACK = "traceback.log"
"""In a run's folder: where an unexpected error came from."""
_STOPS = (Interrupted, KeyboardInterrupt, SystemExit)
# what a full or read-only disk says; anything else is a fault of ours and keeps its traceback
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class Job:
    """A run and where it is.

    Attributes:
        config: checked, with the subject's name.
        folder: of the run.
        name: in tables.
        overrides: as on the command line.
    """

    config: Config
    folder: Path
    name: str
    overrides: Sequence[str]


def write(
    job: Job, subject: Subject, model: Model, trained: Trained, report: Report, seconds: dict[str, float]
) -> None:
    """metrics.json with everything the numbers depend on, then result.json, whose presence means the run is done."""
    settings = plain(job.config)
    record = {
        "report": _relative(report, job.folder).plain(),
        "config": settings,
        "config_hash": key_of(settings),
        "model": {"name": model.name, "identity": model.identity, "dtype": str(model.dtype)},
        "images": dict(zip((path.name for path in subject.paths), subject.hashes, strict=True)),
        "lora": file_hash(trained.lora),
        "train": trained.record,
        "seconds": seconds,
        "memory": provenance.peak_memory(model.device),
        "provenance": provenance.collect(model.device),
    }
    write_atomic(job.folder / "evaluate" / "metrics.json", readable(record))
    result = {
        "name": job.name,
        "overrides": list(job.overrides),
        "status": "finished",
        "label": report.label,
        "metrics": {column: _json_number(value) for column, value in evaluate.summary(report).items()},
    }
    write_atomic(job.folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))


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


@contextmanager
def failures(config: Config, folder: Path, overrides: Sequence[str]) -> Iterator[None]:
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
    config = named(config)
    others = "diverged" if isinstance(error, TrainingDiverged) else "failed"
    result = {
        "name": run_name(config, overrides),
        "overrides": list(overrides),
        "status": "stopped" if isinstance(error, _STOPS) else others,
        "error": f"{type(error).__name__}: {error}",
        "config": plain(config),
    }
    with suppress(OSError):  # the disk may be what failed
        write_atomic(folder / "result.json", json.dumps(result, indent=1, ensure_ascii=False))


@contextmanager
def last_good(folder: Path) -> Iterator[None]:
    """When training diverges, leave the last good checkpoint where the LoRA would have been."""
    try:
        yield
    except TrainingDiverged as error:
        if error.checkpoint is not None:
            link(error.checkpoint, folder / "checkpoints" / error.checkpoint.name)
        raise


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
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


def named(config: Config) -> Config:
    """The config with the name that tables give its subject."""
    return replace(config, dataset=replace(config.dataset, name=dataset.subject_name(config.dataset)))
