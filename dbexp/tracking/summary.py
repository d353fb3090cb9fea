"""The summary run of a sweep: one W&B run beside those of its runs, with all of them in one table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dbexp.core.hashing import key_of
from dbexp.evaluate.columns import heading
from dbexp.runs import record as runs
from dbexp.runs.folder import RunFolder
from dbexp.runs.foreign import within
from dbexp.runs.names import cut
from dbexp.tracking import content, session
from dbexp.tracking.records import Records, RunRecord
from dbexp.tracking.session import Attempts
from dbexp.tracking.writer import Writer

if TYPE_CHECKING:
    import wandb
    from wandb.plot.custom_chart import CustomChart

log = logging.getLogger(__name__)

BEST = "best"
"""Alias of the recommended run's LoRA, among the versions of its subject and model."""
_SHEET_PX = 2048
"""Longest side of a contact sheet among others; the W&B run of its own run has it as it is."""


@dataclass(frozen=True)
class Summary:
    """What a summary run shows; plain data, as JSON has it.

    Attributes:
        objective: the column that ranks.
        counts: status -> number of runs.
        best: column -> value of the best run; empty if none has finished.
        title: of the best run.
        label: printed beside the numbers of the best run when not null.
        columns: headings of the table.
        rows: cells of each run, best first, then of what runs are measured against.
        axes: headings of x and y of the Pareto plot.
        points: title, x, y, and whether no other run beats it in both.
        sheets: title and contact sheet, as a path in the sweep's folder, of finished runs, best first.
        effect_columns: headings of the table of effects.
        effects: its cells, a row per difference.
        statements: what each sentence is about, and the sentence.
        cost_columns, costs: the table of what settings cost, in words; empty where that is not on record.
        page: the sweep's page, by its name in the folder; empty without one.
        recommendation: the setting to take, its score and shares, who cannot be told from it; empty without one.
        best_runs: of the runs of that setting the best of each subject, as a folder in the sweep's.
    """

    objective: str
    counts: dict[str, int]
    best: dict[str, float]
    title: str | None
    label: str | None
    columns: list[str]
    rows: list[list[Any]]
    axes: list[str]
    points: list[list[Any]]
    sheets: list[list[str]]
    effect_columns: list[str] = field(default_factory=list)
    effects: list[list[Any]] = field(default_factory=list)
    statements: list[list[str]] = field(default_factory=list)
    cost_columns: list[str] = field(default_factory=list)
    costs: list[list[str]] = field(default_factory=list)
    recommendation: dict[str, Any] = field(default_factory=dict)
    page: str = ""
    best_runs: list[str] = field(default_factory=list)


def summarise(sweep: Path, summary: Summary, runs: Sequence[Path]) -> None:
    """Bring the summary run of a sweep up to date, in the mode, project and group of its runs.

    There is one per sweep however often this is called: its id is made from that of the first run, and a call that has
    nothing new to say does nothing. Trouble with W&B is a warning.

    Args:
        sweep: its folder; the summary's records go to its sub-folder `tracking`.
        summary: what to show.
        runs: folders of its runs; without a tracked one among them nothing is done.
    """
    tracked = [record for folder in runs if (record := Records(folder).run()) is not None]
    if not tracked:
        return
    records, attempts = Records(sweep), Attempts("the sweep's")
    mode = str(tracked[0].config.get("tracking.mode", "offline"))
    with (
        session.environment(session.inside(records.path, mode)),
        attempts.attempt("the summary of the sweep"),
        records.lock() as locked,
    ):
        if not locked:
            raise RuntimeError(f"another process tracks or uploads {sweep}")
        _summarise(records, attempts, mode, summary, _record(tracked, sweep, summary))


def _summarise(records: Records, attempts: Attempts, mode: str, summary: Summary, record: RunRecord) -> None:
    if records.summary() == asdict(summary) and records.run() == record:
        return
    session.forget_offline_files(records)
    records.write(record)
    records.write_summary(asdict(summary))
    for tried in dict.fromkeys((mode, "offline")):
        with attempts.attempt(f"the summary of the sweep, which could not start {tried}"):
            run = session.open_run(record, cast(session.Mode, tried), records.path)
            writer = Writer(run, record, attempts)
            write(writer, summary, records.folder)
            writer.finish(0, None)
            if tried == "online" and not attempts.failed:
                records.mark_synced(str(run.url))
            return


def _record(tracked: Sequence[RunRecord], sweep: Path, summary: Summary) -> RunRecord:
    """The summary's record: what all runs agree in."""
    first = tracked[0]
    group = first.group or cut(sweep.name)
    verdict = [sentence for _, sentence in summary.statements]
    shared = {name: value for name, value in first.config.items() if all(r.config.get(name) == value for r in tracked)}
    return RunRecord(
        id=key_of({"sweep of": first.id})[:12],
        name=cut(f"summary {group}"),
        kind="sweep",
        project=first.project,
        entity=first.entity,
        group=group,
        tags=tuple(tag for tag in first.tags if all(tag in record.tags for record in tracked)),
        notes="\n\n".join([f"{len(summary.rows)} rows, best first by {heading(summary.objective)}", *verdict]),
        config=shared,
        images=all(record.images for record in tracked),
        artifact=all(record.artifact for record in tracked),
        exit_code=0,
    )


def write(writer: Writer, summary: Summary, sweep: Path) -> None:
    """Log a summary to the open run of its sweep."""
    with writer.attempt("the counts"):
        writer.log({f"jobs/{status}": count for status, count in summary.counts.items()})
    if summary.best:
        with writer.attempt("the best run"):
            values = {f"best/{name}": value for name, value in summary.best.items()}
            writer.log(values)
            writer.summary({**values, "best/title": summary.title, "label": summary.label})
    if summary.recommendation:
        with writer.attempt("the recommendation"):
            writer.summary({f"recommendation/{name}": value for name, value in summary.recommendation.items()})
    for path in summary.best_runs:
        with writer.attempt("the LoRA of the recommended run"):
            record = Records(sweep / path).run() if within(sweep, RunFolder(sweep / path).lora) else None
            if record is not None:
                writer.lora(runs.read(sweep / path), record.config, (BEST,))
    with writer.attempt("the comparison table"):
        writer.log({"tables/comparison": table(summary)})
    if summary.statements:
        with writer.attempt("the effects"):
            writer.log({"tables/effects": _table(summary.effect_columns, summary.effects)})
            writer.log({"tables/statements": _table(["about", "statement"], summary.statements)})
    if summary.costs:
        with writer.attempt("the costs"):
            writer.log({"tables/costs": _table(summary.cost_columns, summary.costs)})
    if summary.page and writer.record.images and within(sweep, summary.page) and (sweep / summary.page).is_file():
        with writer.attempt("the page"):
            writer.log({"page": content.html(sweep / summary.page)})
    with writer.attempt("the Pareto plot"):
        writer.log({"charts/pareto": pareto(summary)})
    if summary.sheets and writer.record.images:
        with writer.attempt("the contact sheets"):
            pictures = [
                content.picture(sweep / path, _SHEET_PX, title) for title, path in summary.sheets if within(sweep, path)
            ]
            writer.log({"pictures/contact_sheets": pictures})


def table(summary: Summary) -> wandb.Table:
    """A row per run and reference; a column per parameter that differs, per metric, and per end of an interval."""
    return _table(summary.columns, summary.rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> wandb.Table:
    import wandb

    # a parameter may be null, a number or a word from run to run
    return wandb.Table(columns=[*columns], data=[*rows], allow_mixed_types=True)


def pareto(summary: Summary) -> CustomChart:
    """A scatter plot of the runs in two columns; the table below it says which are on the front."""
    import wandb

    x, y = summary.axes
    points = wandb.Table(columns=["run", x, y, "Pareto front"], data=summary.points)
    return wandb.plot.scatter(points, x, y, title=f"{y} against {x}")
