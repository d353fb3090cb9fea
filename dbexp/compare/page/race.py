"""The race of a sweep in which halving stopped runs early, as a table: runs by how far they came, a column per rung."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dbexp.compare.comparison import Comparison
from dbexp.compare.numbers import DASH
from dbexp.evaluate.columns import column_of
from dbexp.runs import race


@dataclass(frozen=True)
class RaceTable:
    """A race as the page shows it.

    Attributes:
        judged_by: what runs were judged by.
        rungs: optimizer steps.
        rows: (id of the run, its title, a cell for each rung, where it was stopped); those that went on come first.
        cost: what it took, in words.
    """

    judged_by: str
    rungs: tuple[int, ...]
    rows: tuple[tuple[str, str, tuple[str, ...], str], ...]
    cost: str


def race_tables(comparison: Comparison) -> list[RaceTable]:
    """The races of all sweeps of a comparison; none where no run was stopped early, or files are not ours."""
    tables = []
    for folder in comparison.sweeps.values():
        entries = {e.run.number: (e.id, e.title) for e in comparison.entries if e.run.folder.is_relative_to(folder)}
        for record in race.read(folder):
            try:
                tables.append(_table(record, entries, comparison.confidence))
            except (KeyError, TypeError, ValueError, AttributeError):  # a stranger's file, perhaps
                continue
    return tables


def _table(record: Mapping[str, Any], entries: Mapping[int, tuple[str, str]], confidence: float) -> RaceTable:
    rungs, column = tuple(map(int, record["rungs"])), str(record["column"])
    runs = sorted(record["runs"], key=lambda run: (-(run["stopped"] or math.inf), run["number"]))
    rows = []
    for run in runs:
        name, title = entries.get(run["number"], (str(run["number"]), str(run["number"])))
        by_step = {judgement["step"]: judgement for judgement in run["judgements"]}
        cells = tuple(_cell(by_step[step]) if step in by_step else DASH for step in rungs)
        rows.append((name, title, cells, f"at {int(run['stopped'])}" if run["stopped"] else "went on"))
    judgements = [judgement for run in runs for judgement in run["judgements"]]
    rests_on = ", or ".join(dict.fromkeys(str(each["rests_on"]) for each in judgements)) or "nothing"
    if any(each["low"] is not None for each in judgements):
        rests_on += f" (brackets: {100 * confidence:g} % intervals for other prompts, from these images alone)"
    cost = (
        f"Each value rests on {rests_on}; {race.cost([record['passes']])}. A row of a training step is one pass "
        "forward and two for its gradient; images of the base model and those to train on are the same with and "
        "without a race, and not counted."
    )
    return RaceTable("loss on fixed noise" if column == "loss" else column_of(column).title, rungs, tuple(rows), cost)


def _cell(judgement: Mapping[str, Any]) -> str:
    """Value and interval."""
    low, high = judgement["low"], judgement["high"]
    interval = "" if low is None or high is None else f" [{float(low):.3f}, {float(high):.3f}]"
    return f"{float(judgement['value']):.3f}{interval}"
