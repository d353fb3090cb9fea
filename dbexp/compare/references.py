"""What runs are measured against: rows that no training run owns, once for all runs that share them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dbexp.core.errors import listed
from dbexp.evaluate.columns import REFERENCES
from dbexp.evaluate.functional import Estimate
from dbexp.evaluate.report import Report

_NAMED = 3


@dataclass(frozen=True)
class Reference:
    """A row that no training run owns.

    Attributes:
        key: of `REFERENCES`.
        title: as a reader knows it.
        columns: its estimates.
    """

    key: str
    title: str
    columns: Mapping[str, Estimate]


def references(reports: Sequence[tuple[str, Report]]) -> list[Reference]:
    """The references of some runs. Where there are several of a kind, their titles say whose they are.

    Args:
        reports: (title of a run, its report); a title is `ID: WORDS`, or words alone.
    """
    rows = []
    for key, title in REFERENCES.items():
        owners: dict[str, list[str]] = {}
        columns: dict[str, Mapping[str, Estimate]] = {}
        for run, report in reports:
            if key in report.rows:
                content = repr(dict(report.rows[key]))  # NaN differs from itself, its spelling does not
                owners.setdefault(content, []).append(run)
                columns[content] = report.rows[key]
        for content, estimates in columns.items():
            whole = f"{title} of {_common(owners[content], [run for run, _ in reports])}"
            rows.append(Reference(key, title if len(columns) == 1 else whole, estimates))
    return rows


def _common(runs: Sequence[str], all_runs: Sequence[str]) -> str:
    """What the titles of some runs have in common and no other has, `seed=2` say; else the runs."""
    words = {run: (run.partition(": ")[2] or run).split() for run in all_runs}
    elsewhere = {word for run in all_runs if run not in runs for word in words[run]}
    common = [word for word in words[runs[0]] if word not in elsewhere and all(word in words[run] for run in runs)]
    return " ".join(common) or listed([run.partition(": ")[0] for run in runs], _NAMED)
