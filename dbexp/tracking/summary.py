"""The summary run of a sweep: one W&B run beside those of its jobs, with all of them in one table."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dbexp.core.hashing import key_of
from dbexp.evaluate.columns import COLUMNS, heading
from dbexp.tracking import content, session
from dbexp.tracking.records import Records, RunRecord
from dbexp.tracking.session import Attempts
from dbexp.tracking.writer import Writer

if TYPE_CHECKING:
    import wandb
    from wandb.plot.custom_chart import CustomChart

log = logging.getLogger(__name__)

REFERENCE = "reference"
"""Status of a row that is no job."""

_SHEET_PX = 2048
"""Longest side of a contact sheet among others; the job's own W&B run has it as it is."""


@dataclass(frozen=True)
class Row:
    """A job of a sweep, or what jobs are measured against.

    Attributes:
        title: tells it from the others.
        status: finished, failed and so on, as on record; reference for what is no job.
        settings: parameter -> value, of those that differ.
        values: column -> (value, low, high); None for what a column has no value or interval for.
        label: printed beside every number when not null.
        contact_sheet: path in the sweep's folder; None: there is none.
        error: why it failed.
    """

    title: str
    status: str
    settings: Mapping[str, Any]
    values: Mapping[str, tuple[float | None, float | None, float | None]]
    label: str | None = None
    contact_sheet: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Comparison:
    """The jobs of a sweep side by side.

    Attributes:
        objective: the column that ranks.
        settings: names of the parameters that differ.
        rows: best first, then jobs without a result, then references.
        front: titles of the jobs that no other beats in both `x` and `y`.
        x, y: the columns of the Pareto plot.
    """

    objective: str
    settings: tuple[str, ...]
    rows: tuple[Row, ...]
    front: tuple[str, ...]
    x: str = "clip_t"
    y: str = "dino"

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists and scalars."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Comparison:
        """The comparison that `to_json` wrote."""
        rows = tuple(
            Row(**{**row, "values": {name: tuple(value) for name, value in row["values"].items()}})
            for row in data["rows"]
        )
        return cls(**{**data, "settings": tuple(data["settings"]), "front": tuple(data["front"]), "rows": rows})


def summarise(sweep: Path, comparison: Comparison, jobs: Sequence[Path]) -> None:
    """Bring the summary run of a sweep up to date, in the mode, project and group of its jobs.

    There is one per sweep however often this is called: its id is made from that of the first job, and a call that has
    nothing new to say does nothing. Trouble with W&B is a warning.

    Args:
        sweep: its folder; the summary's records go to its sub-folder `tracking`.
        comparison: what to show.
        jobs: folders of its jobs; without a tracked one among them nothing is done.
    """
    tracked = [record for job in jobs if (record := Records(job).run()) is not None]
    if not tracked:
        return
    records, attempts = Records(sweep), Attempts("the sweep's")
    mode = str(tracked[0].config["tracking.mode"])
    with (
        session.environment(session.inside(records.path, mode)),
        attempts.attempt("the summary of the sweep"),
        records.lock() as held,
    ):
        if not held:
            raise RuntimeError(f"another process tracks or uploads {sweep}")
        _summarise(records, attempts, mode, comparison, _record(tracked, sweep, comparison))


def _summarise(records: Records, attempts: Attempts, mode: str, comparison: Comparison, record: RunRecord) -> None:
    said = json.loads(json.dumps(comparison.to_json()))
    if records.comparison() == said and records.run() == record:
        return
    session.forget_offline_files(records)
    records.write(record)
    records.write_comparison(said)
    for tried in dict.fromkeys((mode, "offline")):
        with attempts.attempt(f"the summary of the sweep, which could not start {tried}"):
            run = session.open_run(record, cast(session.Mode, tried), records.path)
            writer = Writer(run, record, attempts)
            write(writer, comparison, records.folder)
            writer.finish(0, None)
            if tried == "online" and not attempts.failed:
                records.mark_synced(str(run.url))
            return


def _record(tracked: Sequence[RunRecord], sweep: Path, comparison: Comparison) -> RunRecord:
    """The summary's record: what all jobs agree in."""
    first = tracked[0]
    group = first.group or sweep.name
    shared = {name: value for name, value in first.config.items() if all(r.config.get(name) == value for r in tracked)}
    return RunRecord(
        id=key_of({"sweep of": first.id})[:12],
        name=f"summary {group}",
        kind="sweep",
        project=first.project,
        entity=first.entity,
        group=group,
        tags=tuple(tag for tag in first.tags if all(tag in record.tags for record in tracked)),
        notes=f"{len(comparison.rows)} rows, best first by {heading(comparison.objective)}",
        config=shared,
        images=all(record.images for record in tracked),
        artifact=False,
        exit_code=0,
    )


def write(writer: Writer, comparison: Comparison, sweep: Path) -> None:
    """Log a comparison to the open run of its sweep."""
    jobs = [row for row in comparison.rows if row.status != REFERENCE]
    finished = [row for row in jobs if row.status == "finished"]
    with writer.attempt("the counts"):
        counts = Counter(row.status for row in jobs)
        writer.log({f"jobs/{status}": count for status, count in counts.items()})
    if finished:
        with writer.attempt("the best run"):
            best = finished[0]
            values = {f"best/{name}": value for name, (value, _, _) in best.values.items() if value is not None}
            writer.log(values)
            writer.summary({**values, "best/title": best.title, "label": best.label})
    with writer.attempt("the comparison table"):
        writer.log({"tables/comparison": table(comparison)})
    with writer.attempt("the Pareto plot"):
        writer.log({"charts/pareto": pareto(comparison)})
    sheets = [row for row in finished if row.contact_sheet is not None]
    if sheets and writer.record.images:
        with writer.attempt("the contact sheets"):
            pictures = [content.picture(sweep / str(row.contact_sheet), _SHEET_PX, row.title) for row in sheets]
            writer.log({"pictures/contact_sheets": pictures})


def table(comparison: Comparison) -> wandb.Table:
    """A row per job and reference; a column per parameter that differs, per metric, and per end of an interval."""
    import wandb

    columns = [name for name in COLUMNS if any(name in row.values for row in comparison.rows)]
    ends = [
        (name, end, place)
        for name in columns
        for place, end in ((1, "low"), (2, "high"))
        if any(row.values[name][place] is not None for row in comparison.rows if name in row.values)
    ]
    nothing = (None, None, None)
    front = {True: "yes", False: ""}
    return wandb.Table(
        columns=[
            *("run", "status", *comparison.settings, *map(heading, columns)),
            *(f"{name} {end}" for name, end, _ in ends),
            *("Pareto front", "label", "error"),
        ],
        data=[
            [
                *(row.title, row.status),
                *(_cell(row.settings.get(name)) for name in comparison.settings),
                *(row.values.get(name, nothing)[0] for name in columns),
                *(row.values.get(name, nothing)[place] for name, _, place in ends),
                *(front[row.title in comparison.front], row.label, row.error),
            ]
            for row in comparison.rows
        ],
        allow_mixed_types=True,  # a parameter may be null, a number or a word from job to job
    )


def pareto(comparison: Comparison) -> CustomChart:
    """A scatter plot of the jobs in two columns; the table below it says which are on the front."""
    import wandb

    x, y = COLUMNS[comparison.x].title, COLUMNS[comparison.y].title
    points = [
        [row.title, row.values[comparison.x][0], row.values[comparison.y][0], row.title in comparison.front]
        for row in comparison.rows
        if row.status != REFERENCE and all(name in row.values for name in (comparison.x, comparison.y))
    ]
    shown = wandb.Table(columns=["run", x, y, "Pareto front"], data=points)
    return wandb.plot.scatter(shown, x, y, title=f"{y} against {x}")


def _cell(value: Any) -> Any:
    """A parameter's value as a cell of a W&B table, which has no lists."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)
