"""What a W&B run is made of, on disk before it is anywhere else: `tracking/` in the folder of a run or of a sweep.

| file | what |
|---|---|
| run.json | id, name, group, tags, config; how the run ended |
| history.jsonl | the rows of training as they came, with the time of each |
| result.json | the evaluation, and where its pictures and the LoRA are |
| comparison.json | of a sweep: the table of its runs, and where their contact sheets are |
| synced.json | what of all this is on the server |
| lock | held while a process tracks the run or uploads it |

Paths in these files are relative to the folder that holds `tracking/`, so it may be moved. An upload needs nothing
else, and no file of W&B's own, which names what it stages by absolute paths.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dbexp.core.files import readable, write_atomic
from dbexp.core.hashing import file_hash, key_of
from dbexp.evaluate.report import Report
from dbexp.runs.names import matters

FOLDER = "tracking"
"""Sub-folder of a run, or of a sweep, that holds its records and everything W&B writes."""

TIME = "_timestamp"
"""W&B's name for the time of a row, seconds since 1970."""


@dataclass(frozen=True)
class RunRecord:
    """What W&B is told of a run when it begins and when it ends.

    Attributes:
        id: W&B's; a job that is repeated in its folder keeps it.
        name: see `names.run_name`.
        kind: job, or sweep for the summary of one.
        project, entity: where it goes; entity None: the user's default.
        group: the sweep.
        tags: each once.
        notes: the command.
        config: every parameter by dotted name.
        images, artifact: whether pictures and the LoRA are logged.
        exit_code: 0 finished, 1 failed, None: it has not ended, or was killed.
        error: why it failed, one line.
    """

    id: str
    name: str
    kind: str
    project: str
    entity: str | None
    group: str | None
    tags: tuple[str, ...]
    notes: str
    config: Mapping[str, Any]
    images: bool = True
    artifact: bool = True
    exit_code: int | None = None
    error: str | None = None


def new_id() -> str:
    """An id for a run that was never tracked."""
    return uuid.uuid4().hex[:12]


class Records:
    """The records of one folder.

    Args:
        folder: of the run or sweep.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.path = self.folder / FOLDER

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the folder during the block, which is told False where another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / "lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    # -- the run ------------------------------------------------------------------------------------------------------

    def begin(self, record: RunRecord) -> RunRecord:
        """Write run.json of a run that begins, and take back what an earlier attempt left.

        Returns:
            The record, with the id of the earlier attempt if that was the same job.
        """
        before = self.run()
        if before is not None and _same_job(before, record):
            record = replace(record, id=before.id)
        for name in ("history.jsonl", "result.json"):
            (self.path / name).unlink(missing_ok=True)
        self.write(record)
        return record

    def write(self, record: RunRecord) -> None:
        """Write run.json."""
        self._write("run.json", asdict(record))

    def run(self) -> RunRecord | None:
        """run.json; None where there is none, or one that cannot be read."""
        read = self._read("run.json")
        try:
            return None if read is None else RunRecord(**{**read, "tags": tuple(read["tags"])})
        except (TypeError, KeyError):
            return None

    # -- its history --------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        """Add rows to history.jsonl; returns them with the time."""
        now = round(time.time(), 3)
        timed = [{TIME: now, **row} for row in rows]
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in timed))
        return timed

    def history(self) -> list[dict[str, float]]:
        """Rows by step, each step once, the last one that was written; a torn last line is left out."""
        path = self.path / "history.jsonl"
        rows: dict[float, dict[str, float]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
                rows[row["step"]] = row
            except (ValueError, KeyError):
                continue
        return [rows[step] for step in sorted(rows)]

    # -- its result ---------------------------------------------------------------------------------------------------

    def write_result(self, report: Report, contact_sheet: Path | None, lora: Path) -> None:
        """Write result.json."""
        images = tuple(replace(image, path=self._relative(Path(image.path))) for image in report.images)
        content = {
            "report": replace(report, images=images).plain(),
            "contact_sheet": contact_sheet and self._relative(contact_sheet),
            "lora": self._relative(lora),
        }
        self._write("result.json", content)

    def result(self) -> tuple[Report, Path | None, Path] | None:
        """Report, contact sheet and LoRA with paths that can be opened; None: the run has no result.

        Raises:
            ValueError: it was written by another metric version.
        """
        read = self._read("result.json")
        if read is None:
            return None
        report = Report.from_plain(read["report"])
        images = tuple(replace(image, path=str(self.folder / image.path)) for image in report.images)
        sheet = read["contact_sheet"]
        return replace(report, images=images), sheet and self.folder / sheet, self.folder / read["lora"]

    # -- a sweep's comparison -----------------------------------------------------------------------------------------

    def write_comparison(self, comparison: Mapping[str, Any]) -> None:
        """Write comparison.json."""
        self._write("comparison.json", comparison)

    def comparison(self) -> dict[str, Any] | None:
        """comparison.json; None where there is none."""
        return self._read("comparison.json")

    # -- what is on the server ----------------------------------------------------------------------------------------

    def signature(self) -> str:
        """A hash of everything an upload would send."""
        read = {name: self._read(name) for name in ("run.json", "result.json", "comparison.json")}
        result = read["result.json"] or {}
        files = [self.folder / result[name] for name in ("contact_sheet", "lora") if result.get(name)]
        hashes = [file_hash(path) for path in [self.path / "history.jsonl", *files] if path.is_file()]
        return key_of({"records": read, "files": hashes})

    def synced(self) -> bool:
        """Whether all of it is on the server."""
        read = self._read("synced.json")
        return read is not None and read.get("signature") == self.signature()

    def mark_synced(self, url: str) -> None:
        """Note that all of it is on the server; W&B's own offline files of the run are marked for `wandb sync` too."""
        self._write("synced.json", {"signature": self.signature(), "url": url})
        for path in self.offline_files():
            path.with_name(f"{path.name}.synced").touch()

    def offline_files(self) -> list[Path]:
        """The run's files that W&B wrote offline."""
        record = self.run()
        return [] if record is None else sorted(self.path.glob(f"wandb/offline-run-*/run-{record.id}.wandb"))

    # -- files --------------------------------------------------------------------------------------------------------

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomic(self.path / name, readable(content))

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            read = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return read if isinstance(read, dict) else None


def find(folder: Path) -> list[Records]:
    """The records of every run and sweep at or below a folder, in the order of their paths."""
    return [Records(path.parent.parent) for path in sorted(folder.rglob(f"{FOLDER}/run.json"))]


def _same_job(one: RunRecord, other: RunRecord) -> bool:
    """Whether two records are of the same run: a job's folder may be used again for another one."""

    def what(record: RunRecord) -> tuple[Any, ...]:
        config = {key: value for key, value in record.config.items() if matters(key)}
        content = json.dumps(config, sort_keys=True, default=str) if record.kind == "job" else None
        return record.kind, record.project, record.entity, content

    return what(one) == what(other)
