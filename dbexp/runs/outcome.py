"""What a run leaves to say how it ended: its metrics with all they depend on, or word of why there are none."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dbexp import dataset
from dbexp.config.schema import Config
from dbexp.config.values import plain
from dbexp.core import disk, provenance
from dbexp.core.device import memory_errors
from dbexp.core.errors import ConfigError, Interrupted, TrainingDiverged
from dbexp.core.files import link, readable, sweep_up, write_atomic
from dbexp.core.hashing import file_hash, key_of
from dbexp.core.interrupts import signum_of
from dbexp.core.store import Store
from dbexp.dataset import Subject
from dbexp.evaluate.report import ImageScores, Report, summary
from dbexp.models import Model
from dbexp.runs.folder import RunFolder
from dbexp.runs.names import run_name
from dbexp.train.result import Trained

_STOPS = (Interrupted, KeyboardInterrupt, SystemExit)
_LESS_MEMORY = (
    "lower train.batch_size (train.grad_accum makes up for it), choose train.gradient_checkpointing=true or a lower "
    "model.resolution, or free some memory; the same command goes on where it stopped"
)


@dataclass(frozen=True)
class Outcome:
    """Says in the folder of a run how it ended.

    Attributes:
        folder: of the run.
        config: checked, with the subject's name.
        overrides: as on the command line.
        name: of the run, in tables.
    """

    folder: RunFolder
    config: Config
    overrides: tuple[str, ...]
    name: str

    @classmethod
    def of(cls, config: Config, folder: Path, overrides: Sequence[str]) -> Outcome:
        """For a run with a checked config."""
        named = replace(config, dataset=replace(config.dataset, name=dataset.subject_name(config.dataset)))
        return cls(RunFolder(folder), named, tuple(overrides), run_name(named, overrides))

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Leave a result.json that says why the block did not end, so that a folder of runs tells its own story.

        What is a fault of ours leaves its traceback too; training that diverged, its last good checkpoint. The story of
        an earlier attempt is taken back first, and what it left half written if it was killed.

        Raises:
            ConfigError: in place of what a full or read-only disk raised, or a lack of memory.
        """
        for earlier in (self.folder.result, self.folder.traceback):
            with suppress(OSError):  # a folder that cannot be written is told of by whoever writes first
                earlier.unlink(missing_ok=True)
        sweep_up(self.folder.path, below=True)
        try:
            with _disk_errors(self.folder.path, Store.of(self.config.store).root), memory_errors(_LESS_MEMORY):
                yield
        except BaseException as error:
            if isinstance(error, TrainingDiverged) and error.checkpoint is not None:
                link(error.checkpoint, self.folder.checkpoints / error.checkpoint.name)
            if not isinstance(error, (*_STOPS, ConfigError, TrainingDiverged)):
                with suppress(OSError):  # the disk may be what failed
                    write_atomic(self.folder.traceback, traceback.format_exc())
            self.failed(error)
            raise

    def failed(self, error: BaseException) -> None:
        """Write a result.json that says why the run did not end: stopped by a signal, diverged, or failed otherwise."""
        others = "diverged" if isinstance(error, TrainingDiverged) else "failed"
        status = "stopped" if isinstance(error, _STOPS) else others
        reason = f"stopped by {signum_of(error).name}" if isinstance(error, KeyboardInterrupt) else str(error)
        with suppress(OSError):  # the disk may be what failed
            self._write_result(
                {"status": status, "error": f"{type(error).__name__}: {reason}", "config": plain(self.config)}
            )

    def pruned(self, reason: str) -> None:
        """Write a result.json that says where and why the run was stopped before its end, on purpose."""
        self._write_result({"status": "pruned", "error": reason, "config": plain(self.config)})

    def finished(
        self,
        subject: Subject,
        model: Model,
        trained: Trained,
        report: Report,
        seconds: Mapping[str, float],
        drawn: Mapping[str, Any] | None = None,
        draws: Model | None = None,
    ) -> None:
        """Write metrics.json, with everything that the numbers depend on, then result.json, and the run is done.

        Args:
            subject: of the run.
            model: the base model.
            trained: its LoRA.
            report: of its samples.
            seconds: that each stage took in this process, which may have found its results in the store.
            drawn: what the images took when they were drawn; None: that is not on record.
            draws: the model that drew them; None: the base model.
        """
        other = {} if draws is None or draws.identity == model.identity else {"sample_model": _named(draws)}
        settings = plain(self.config)
        record = {
            "report": self._relative(report, subject).plain(),
            "config": settings,
            "config_hash": key_of(settings),
            "model": _named(model),
            **other,
            "images": dict(zip((path.name for path in subject.paths), subject.hashes, strict=True)),
            "lora": file_hash(trained.lora),
            "train": trained.record,
            "sample": drawn,
            "lora_bytes": trained.lora.stat().st_size,
            "seconds": dict(seconds),
            "memory": provenance.peak_memory(model.device),
            "provenance": provenance.collect(model.device),
        }
        write_atomic(self.folder.metrics, readable(record))
        metrics = {column: None if value != value else value for column, value in summary(report).items()}  # no NaN
        self._write_result({"status": "finished", "label": report.label, "metrics": metrics})

    def _write_result(self, content: Mapping[str, Any]) -> None:
        whole = {"name": self.name, "overrides": list(self.overrides), **content}
        write_atomic(self.folder.result, json.dumps(whole, indent=1, ensure_ascii=False))

    def _relative(self, report: Report, subject: Subject) -> Report:
        """The report with paths inside the run's folder, which may then be moved."""
        links = {str(path): self.folder.subject_image(number, path) for number, path in enumerate(subject.paths)}

        def short(path: str) -> str:
            file = links.get(path, Path(path))
            return self.folder.relative(file) if file.is_relative_to(self.folder.path) else file.name

        def shortened(images: Sequence[ImageScores]) -> tuple[ImageScores, ...]:
            return tuple(
                replace(scores, path=short(scores.path), nearest=scores.nearest and short(scores.nearest))
                for scores in images
            )

        return replace(
            report,
            images=shortened(report.images),
            class_images=shortened(report.class_images),
            copies=tuple(replace(copy, path=short(copy.path), nearest=short(copy.nearest)) for copy in report.copies),
        )


def _named(model: Model) -> dict[str, str]:
    return {"name": model.name, "identity": model.identity, "dtype": str(model.dtype)}


@contextmanager
def _disk_errors(folder: Path, store: Path) -> Iterator[None]:
    """A full or read-only disk is the user's to mend: say where, and that nothing is lost.

    Args:
        folder: of the run.
        store: its root.
    """
    places = {"store=FOLDER": store, "hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER)": folder}
    try:
        yield
    except OSError as error:
        if not disk.refuses(error):
            raise
        error.filename = error.filename and str(Path(str(error.filename)).absolute())
        advice = "then repeat the command: it goes on where it stopped"
        raise ConfigError(f"{disk.message(error, places)}, {advice}") from error
