"""Uploading later what did not go to W&B when it happened: offline runs, and what a lost connection kept back."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dbexp.core.errors import ConfigError, first_line
from dbexp.tracking import session, summary
from dbexp.tracking.records import Records, RunRecord, find
from dbexp.tracking.session import Attempts
from dbexp.tracking.writer import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Synced:
    """What an upload did, by the folder of the run or sweep.

    Attributes:
        uploaded: folder -> address of its W&B run.
        present: folders whose run was complete on the server.
        failed: folder -> why it is not; the next upload tries again.
    """

    uploaded: Mapping[Path, str]
    present: tuple[Path, ...]
    failed: Mapping[Path, str]


def sync(folder: Path) -> Synced:
    """Upload every run and sweep at or below a folder that W&B lacks or has in part.

    Each W&B run is made anew from the records in its folder, under the id it always had. So folders may have been
    moved, half of a run may be online, and a call may be interrupted and repeated: rows that the server has are not
    sent again.

    Args:
        folder: of a run, of a sweep, or of many.

    Raises:
        ConfigError: there is no login, nothing was tracked here, or there is no such folder.
    """
    all_records = find(folder)
    if not all_records:
        missing = "has no tracked runs" if folder.is_dir() else "there is no such folder"
        raise ConfigError(f"{folder}: {missing}; give the folder of a run or of a sweep")
    uploaded: dict[Path, str] = {}
    present: list[Path] = []
    failed: dict[Path, str] = {}
    todo = [records for records in all_records if not records.synced()]
    if todo and (problem := session.login_problem()):
        raise ConfigError(f"cannot upload: {problem}")
    for records in all_records:
        if records not in todo:
            present.append(records.folder)
            continue
        try:
            uploaded[records.folder] = _upload(records)
        except Exception as error:
            failed[records.folder] = first_line(error, typed=True)
    return Synced(uploaded, tuple(present), failed)


class Incomplete(Exception):
    """A part of a run did not reach the server."""


def _upload(records: Records) -> str:
    """Upload one run and mark it; returns its address."""
    with records.lock() as locked, tempfile.TemporaryDirectory(prefix="dbexp-", ignore_cleanup_errors=True) as scratch:
        if not locked:
            raise Incomplete("it is still running, or another process uploads it")
        record = records.run()
        if record is None:
            raise Incomplete(f"the record in {records.path} is damaged")
        # W&B's own files go to a passing place: these records are what is kept
        with session.environment(session.inside(Path(scratch), "online")):
            return _send(records, record, Path(scratch))


def _send(records: Records, record: RunRecord, scratch: Path) -> str:
    attempts = Attempts("its")
    run = session.open_run(record, "online", scratch)
    address = str(run.url)
    writer = Writer(run, record, attempts)
    writer.rows(records.history())
    with attempts.attempt("the result"):
        if (result := records.result()) is not None:
            writer.result(result)
    with attempts.attempt("the summary of the sweep"):
        if (content := records.summary()) is not None:
            summary.write(writer, summary.Summary(**content), records.folder)
    # a run whose end is not on record was killed
    writer.finish(1 if record.exit_code is None else record.exit_code, record.error)
    if attempts.failed:
        raise Incomplete(f"W&B lacks {', '.join(attempts.failed)}")
    records.mark_synced(address)
    return address
