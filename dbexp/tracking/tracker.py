"""Tracking a run while it happens: each thing on disk first, then to W&B."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol, cast

from dbexp.config.schema import Config
from dbexp.config.values import flatten, plain
from dbexp.core.errors import ConfigError, first_line
from dbexp.runs import names
from dbexp.tracking import session
from dbexp.tracking.records import Records, RunRecord, new_id
from dbexp.tracking.session import Attempts
from dbexp.tracking.writer import Writer

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where a run tells how it goes."""

    def train(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log rows of the training history, in the order of their `step`; each has whatever else was measured then."""

    def result(self) -> None:
        """Log the metric table, the pictures and the LoRA, which the run's folder has by now."""

    @property
    def lacks(self) -> Sequence[str]:
        """What W&B did not get; complete when the run has ended."""


class Disabled:
    """The tracker of a run that is not tracked: takes everything, does nothing.

    Args:
        lacks: why it is not, where it should have been.
    """

    def __init__(self, lacks: Sequence[str] = ()) -> None:
        self.lacks = lacks

    def train(self, rows: Sequence[Mapping[str, float]]) -> None: ...

    def result(self) -> None: ...


@contextmanager
def start(
    cfg: Config, *, folder: Path, name: str, group: str | None, overrides: Sequence[str] = ()
) -> Iterator[Tracker]:
    """Track the block as one W&B run, which ends with the block and is marked failed when an exception passes through.

    Trouble with W&B never reaches the block: it is logged as a warning, and what can be kept is kept. A run that cannot
    go online is kept offline. A run that is repeated in its folder goes on with its W&B run.

    Args:
        cfg: a checked config.
        folder: the run's folder; tracking writes into its sub-folder `tracking` and nowhere else.
        name: see `run_name`.
        group: name of the sweep; None: a run of its own. `tracking.group` wins.
        overrides: shown as the command that made the run.

    Raises:
        ConfigError: what `problems` finds.
    """
    if cfg.tracking.mode == "disabled":
        yield Disabled()
        return
    if problems := session.problems(cfg):
        raise ConfigError(problems)
    for sentence in session.conflicts(cfg):
        _tell(sentence)
    records, attempts = Records(folder), session.Attempts()
    with ExitStack() as stack:
        stack.enter_context(
            session.environment(session.inside(records.path, cfg.tracking.mode, is_agents=group is None))
        )
        tracker: _Tracker | None = None
        with attempts.attempt("the run"):
            if not stack.enter_context(records.lock()):
                raise RuntimeError(f"another process tracks or uploads {folder}")
            tracker = _Tracker(records, records.begin(_record(cfg, name, group, overrides)), attempts)
            tracker.open(cfg.tracking.mode)
        error: BaseException | None = None
        try:
            yield tracker or Disabled(attempts.failed)
        except BaseException as raised:
            error = raised
            raise
        finally:
            if tracker is not None:
                tracker.finish(error)


@lru_cache(maxsize=8)
def _tell(sentence: str) -> None:
    """Once in a process, however many runs of a sweep it is true of."""
    log.warning("%s", sentence)


def _record(cfg: Config, name: str, group: str | None, overrides: Sequence[str]) -> RunRecord:
    return RunRecord(
        id=new_id(),
        name=name,
        kind="job",
        project=cfg.tracking.project,
        entity=cfg.tracking.entity,
        group=cfg.tracking.group or (group and names.cut(group)),
        tags=names.tags(cfg),
        notes=" ".join(["dbexp", *overrides]),
        config=flatten(plain(cfg)),
        images=cfg.tracking.images,
        artifact=cfg.tracking.artifact,
    )


class _Tracker:
    """Keeps the records of a run, and tells W&B while W&B listens."""

    def __init__(self, records: Records, record: RunRecord, attempts: Attempts) -> None:
        self._records, self._record, self._attempts = records, record, attempts
        self._writer: Writer | None = None
        self._url: str | None = None

    @property
    def lacks(self) -> Sequence[str]:
        return self._attempts.failed

    def open(self, mode: str) -> None:
        """Begin the W&B run in the mode asked for, else offline, else not at all, a warning at each step down."""
        session.forget_offline_files(self._records)
        for tried in dict.fromkeys((mode, "offline")):
            with self._attempts.attempt(f"the run, which could not start {tried}"):
                run = session.open_run(self._record, cast(session.Mode, tried), self._records.path, is_live=True)
                self._url = run.url if tried == "online" else None
                if run.id != self._record.id:  # chosen by the agent of a W&B Sweep
                    self._record = replace(self._record, id=run.id)
                    self._records.write(self._record)
                self._writer = Writer(run, self._record, self._attempts)
                log.info("tracking: %s", self._url or f"offline, in {Path(run.dir).parent}")
                return

    def train(self, rows: Sequence[Mapping[str, float]]) -> None:
        with self._attempts.attempt("part of the training history"):
            timed = self._records.append(rows)
            if self._writer is not None:
                self._writer.rows(timed)

    def result(self) -> None:
        with self._attempts.attempt("the result"):
            if self._writer is not None and (run := self._records.result()) is not None:
                self._writer.result(run)

    def finish(self, error: BaseException | None) -> None:
        """End the run, failed if there was an exception, and note whether the server has everything."""
        exit_code = 0 if error is None else 1
        reason = None if error is None else first_line(error, typed=True)
        self._record = replace(self._record, exit_code=exit_code, error=reason)
        with self._attempts.attempt("how the run ended"):
            self._records.write(self._record)
            self._records.condense()
        if self._writer is not None:
            self._writer.finish(exit_code, reason)
        if self._attempts.failed:
            with self._attempts.attempt("a note of what it lacks"):
                self._records.write(replace(self._record, lacks=tuple(self._attempts.failed)))
        if self._url is not None and not self._attempts.failed:
            with self._attempts.attempt("a note that it has everything"):
                self._records.mark_synced(self._url)
