"""A benchmark over subjects, in the form of DreamBooth's table 1: methods, subjects, and what others published."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller

from dbexp.compare.inference.estimate import EffectEstimate
from dbexp.compare.numbers import exact
from dbexp.compare.published import PublishedRow
from dbexp.compare.ranking import RankedRun
from dbexp.compare.standing import Standing, mean_over
from dbexp.evaluate.columns import PAPER, REFERENCES
from dbexp.evaluate.functional import Estimate

BENCHMARK = "benchmark.csv"
BENCHMARK_LEGEND = (
    "a row per method is the mean over subjects, which count alike; its interval speaks of what its row says. "
    "Published rows are others' numbers, measured with the backbones named there, on images and models of their own."
)


@dataclass(frozen=True)
class BenchmarkRow:
    """A row of the table.

    Attributes:
        kind: mean, over subjects; subject, one of them; reference, base model and real images; published.
        title: the setting, or what the row is of.
        subject: of a row of one subject.
        columns: column -> value, with an interval where there is one.
        source: of a published row, with the backbones that measured it.
        scope: what the intervals speak of.
    """

    kind: str
    title: str
    subject: str
    columns: Mapping[str, Estimate]
    source: str = ""
    scope: str = ""


def benchmark(
    standings: Sequence[Standing],
    levels: Sequence[Mapping[str, EffectEstimate]],
    subjects: Mapping[str, str],
    rows: Sequence[PublishedRow],
) -> tuple[BenchmarkRow, ...]:
    """The table; empty for runs of one subject beside which nobody published anything.

    Args:
        standings: settings, best first.
        levels: of each, column -> its mean with its interval.
        subjects: id of a run -> its subject.
        rows: that others published.
    """
    names = list(dict.fromkeys(subjects.values()))
    if len(names) < 2 and not rows:
        return ()
    return (
        *_references(standings, subjects),
        *_means(standings, levels),
        *_published(rows),
        *(_of_subjects(standings, subjects) if len(names) > 1 else ()),
    )


def _means(standings: Sequence[Standing], levels: Sequence[Mapping[str, EffectEstimate]]) -> Iterator[BenchmarkRow]:
    for standing, of_columns in zip(standings, levels, strict=True):
        columns = {
            name: Estimate(standing.moments[name].mean, of_columns[name].low, of_columns[name].high)
            for name in PAPER
            if name in of_columns and name in standing.moments
        }
        scope = next((of_columns[name].scope for name in PAPER if name in of_columns), "")
        yield BenchmarkRow("mean", standing.title, "", columns, scope=scope)


def _references(standings: Sequence[Standing], subjects: Mapping[str, str]) -> Iterator[BenchmarkRow]:
    entries = [entry for standing in standings for entry in standing.entries]
    for key, title in REFERENCES.items():
        has = [entry for entry in entries if entry.run.report and key in entry.run.report.rows]
        if has:
            columns = {name: _mean_of_reference(has, subjects, key, name) for name in PAPER}
            # what real images score under prompts is an end of a scale, and no reference of table 1
            known = {n: e for n, e in columns.items() if not math.isnan(e.value) and (key, n) != ("real", "clip_t")}
            yield BenchmarkRow("reference", title, "", known)


def _mean_of_reference(entries: Sequence[RankedRun], subjects: Mapping[str, str], key: str, name: str) -> Estimate:
    values: dict[str, list[float]] = {}
    for entry in entries:
        row = entry.run.report.rows[key] if entry.run.report else {}
        values.setdefault(subjects[entry.id], []).append(row[name].value if name in row else math.nan)
    means = [math.fsum(of_subject) / len(of_subject) for of_subject in values.values()]
    return Estimate(math.fsum(means) / len(means), n=len(means))


def _published(rows: Sequence[PublishedRow]) -> Iterator[BenchmarkRow]:
    for row in rows:
        columns = {name: Estimate(row.columns[name]) for name in PAPER if name in row.columns}
        yield BenchmarkRow("published", row.title, "", columns, f"{row.source}; {row.backbones}")


def _of_subjects(standings: Sequence[Standing], subjects: Mapping[str, str]) -> Iterator[BenchmarkRow]:
    for standing in standings:
        by_subject: dict[str, list[RankedRun]] = {}
        for entry in standing.entries:
            by_subject.setdefault(subjects[entry.id], []).append(entry)
        for subject, entries in sorted(by_subject.items()):
            means = {name: mean_over(entries, subjects, methodcaller("value", name)).mean for name in PAPER}
            columns = {name: Estimate(mean, n=len(entries)) for name, mean in means.items() if not math.isnan(mean)}
            yield BenchmarkRow("subject", standing.title, subject, columns)


def benchmark_csv(rows: Sequence[BenchmarkRow]) -> str:
    """benchmark.csv: the table, a value and both ends of its interval per column; empty for what there is not."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ends = ("value", "low", "high")
    names = [name if end == "value" else f"{name}_{end}" for name in PAPER for end in ends]
    writer.writerow(["kind", "title", "subject", *names, "speaks_of", "source"])
    for row in rows:
        estimates = [row.columns.get(name, Estimate.missing("")) for name in PAPER]
        numbers = [exact(getattr(estimate, end)) for estimate in estimates for end in ends]
        writer.writerow([row.kind, row.title, row.subject, *numbers, row.scope, row.source])
    return buffer.getvalue()
