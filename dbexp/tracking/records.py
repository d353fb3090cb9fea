"""What a W&B run is made of, on disk before it is anywhere else: `tracking/` in the folder of a run or of a sweep.

| file | what |
|---|---|
| run.json | id, name, group, tags, config; how the run ended |
| history.jsonl | rows of training, each with its time; by the end, of those in the run's own history, the time alone |
| summary.json | of a sweep: what its summary run shows |
| synced.json | what of all this is on the server |
| lock | held while a process tracks the run or uploads it |

The evaluation, its pictures and the LoRA are read from the run's folder, where they are already. Paths are relative to
the folder that holds `tracking/`, so it may be moved. An upload needs nothing else, and no file of W&B's own, which
names what it stages by absolute paths.
"""

from __future__ import annotations

import json
import re
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
from dbexp.runs import foreign
from dbexp.runs import record as runs
from dbexp.runs.folder import RunFolder
from dbexp.runs.names import matters
from dbexp.runs.record import Run

_RUN, _HISTORY, _SUMMARY, _SYNCED = "run.json", "history.jsonl", "summary.json", "synced.json"

_ID = re.compile(r"[\w-]{1,128}")

TIME = "_timestamp"
"""W&B's name for the time of a row, seconds since 1970."""


@dataclass(frozen=True)
class RunRecord:
    """What W&B is told of a run when it begins and when it ends.

    Attributes:
        id: W&B's; a run that is repeated in its folder keeps it.
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
        lacks: parts that W&B did not get while the run went on; its folder has them.
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
    lacks: tuple[str, ...] = ()


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
        self._run_folder = RunFolder(self.folder)
        self.path = self._run_folder.tracking

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
            The record, with the id of the earlier attempt if that was the same run.
        """
        before = self.run()
        if before is not None and _same_run(before, record):
            record = replace(record, id=before.id)
        (self.path / _HISTORY).unlink(missing_ok=True)
        self.write(record)
        return record

    def write(self, record: RunRecord) -> None:
        """Write run.json."""
        self._write(_RUN, asdict(record))

    def run(self) -> RunRecord | None:
        """run.json; None where there is none, or one that cannot be read."""
        content = _read(self.folder, self.path / _RUN)
        try:
            record = (
                None
                if content is None
                else RunRecord(**{**content, "tags": tuple(content["tags"]), "lacks": tuple(content.get("lacks", ()))})
            )
        except (TypeError, KeyError):
            return None
        # the id becomes the name of a file
        sound = record is not None and foreign.fits(record, RunRecord) and _ID.fullmatch(record.id)
        return record if sound else None

    def result(self) -> Run | None:
        """The run with its report, as its folder tells it; None: it has no result.

        Raises:
            OSError, ValueError, KeyError: a file is damaged, or of another metric version.
        """
        run = runs.read(self.folder) if self._run_folder.result.is_file() else None
        return run if run is not None and run.report is not None else None

    # -- its history --------------------------------------------------------------------------------------------------

    def append(self, rows: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
        """Add rows to history.jsonl; returns them with the time."""
        now = round(time.time(), 3)
        timed = [{TIME: now, **row} for row in rows]
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _HISTORY).open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in timed))
        return timed

    def history(self) -> list[dict[str, float]]:
        """Rows by step, each step once, the last one that was written; a torn last line is left out."""
        whole, timed = _rows(self.folder, self._run_folder.history), _rows(self.folder, self.path / _HISTORY)
        return [{**whole.get(step, {}), **timed[step]} for step in sorted(timed)]

    def condense(self) -> None:
        """Leave to the run's own history what it has, now that the run has ended."""
        whole, timed = _rows(self.folder, self._run_folder.history), _rows(self.folder, self.path / _HISTORY)
        for step, row in timed.items():
            if {TIME: row.get(TIME), **whole.get(step, {})} == row:
                timed[step] = {TIME: row[TIME], "step": step}
        if timed:
            write_atomic(self.path / _HISTORY, "".join(json.dumps(row) + "\n" for row in timed.values()))

    # -- the summary of a sweep ---------------------------------------------------------------------------------------

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json."""
        self._write(_SUMMARY, summary)

    def summary(self) -> dict[str, Any] | None:
        """summary.json; None where there is none."""
        return _read(self.folder, self.path / _SUMMARY)

    # -- what is on the server ----------------------------------------------------------------------------------------

    def signature(self) -> str:
        """A hash of everything an upload would send."""
        run = self._run_folder
        evaluated = (_read(self.folder, run.metrics) or {}).get("report") if run.result.is_file() else None
        files = (self.path / _HISTORY, run.contact_sheet, run.lora)
        return key_of(
            {
                "run": _read(self.folder, self.path / _RUN),
                "summary": self.summary(),
                "report": evaluated,
                "files": [
                    file_hash(path) for path in files if foreign.regular(self.folder, path.relative_to(self.folder))
                ],
            }
        )

    def synced(self) -> bool:
        """Whether all of it is on the server."""
        mark = _read(self.folder, self.path / _SYNCED)
        return mark is not None and mark.get("signature") == self.signature()

    def mark_synced(self, url: str) -> None:
        """Note that all of it is on the server; W&B's own offline files of the run are marked for `wandb sync` too."""
        self._write(_SYNCED, {"signature": self.signature(), "url": url})
        for path in self.offline_files():
            path.with_name(f"{path.name}.synced").touch()

    def offline_files(self) -> list[Path]:
        """The run's files that W&B wrote offline."""
        record = self.run()
        return [] if record is None else sorted(self.path.glob(f"wandb/offline-run-*/run-{record.id}.wandb"))

    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        write_atomic(self.path / name, readable(content))


def find(folder: Path) -> list[Records]:
    """The records of every run and sweep at or below a folder, in the order of their paths."""
    name = RunFolder(folder).tracking.name
    return [Records(path.parent.parent) for path in sorted(folder.rglob(f"{name}/{_RUN}"))]


def _read(folder: Path, path: Path) -> dict[str, Any] | None:
    """A file of JSON in a folder, with a dict in it; None where there is none, or another."""
    try:
        return foreign.read_json(folder, path)
    except (OSError, ValueError):
        return None


def _rows(folder: Path, path: Path) -> dict[float, dict[str, float]]:
    """Step -> row of a history, the last one that was written; what is torn, or no row of numbers, is left out."""
    rows: dict[float, dict[str, float]] = {}
    try:
        lines = foreign.read_text(folder, path).splitlines()
    except (OSError, ValueError):
        return rows
    for line in lines:
        try:
            row = json.loads(line)
            if foreign.fits(row, dict[str, float]):
                rows[row["step"]] = row
        except (ValueError, KeyError, RecursionError):
            continue
    return rows


def _same_run(before: RunRecord, after: RunRecord) -> bool:
    """Whether two records are of the same run: its folder may be used again for another one."""

    def identity(record: RunRecord) -> tuple[Any, ...]:
        config = {key: value for key, value in record.config.items() if matters(key)}
        content = json.dumps(config, sort_keys=True, default=str) if record.kind == "job" else None
        return record.kind, record.project, record.entity, content

    return identity(before) == identity(after)
