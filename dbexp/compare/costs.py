"""What runs took, for readers: costs.csv, and a few words per setting.

Seconds are never the same twice, so they have a file of their own: results.csv is the same after any interruption.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence

from dbexp.compare.factors import Factor
from dbexp.compare.numbers import DASH, exact
from dbexp.compare.ranking import RankedRun
from dbexp.core.errors import byte_size
from dbexp.runs.costs import NAMES, Costs

COSTS = "costs.csv"
TITLES = ("train", "sample", "evaluate", "memory", "parameters", "LoRA")
"""Of the few words."""
SHARE = "≈"
"""Stands before what is a lane's share of a pack."""
LEGEND = (
    "Seconds are those of when it was computed, maybe by an earlier sweep; sampling is that of images with the LoRA, "
    f"memory the most that training held. {SHARE}: trained in a pack, of whose seconds a run has the share of its rows "
    "in the batch, and of whose memory one part in as many as it had lanes."
)
_MIB = 1024**2
_COUNTED = ("train_seconds", "sample_seconds", "evaluate_seconds", "train_memory_mib", "parameters", "lora_bytes")


def costs_csv(finished: Sequence[RankedRun], swept: Sequence[Factor]) -> str:
    """costs.csv: a row per finished run; empty for what is not on record. `lanes` above 1: `train_*` are shares."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["job", *(factor.name for factor in swept), *NAMES])
    for entry in finished:
        values = [getattr(entry.run.costs, name) for name in NAMES]
        settings = [entry.settings[factor.name] for factor in swept]
        writer.writerow([entry.id, *settings, *(exact(v) if isinstance(v, float) else v for v in values)])
    return buffer.getvalue()


def are_known(entries: Iterable[RankedRun]) -> bool:
    """Whether any run has a cost to show."""
    return any(
        getattr(entry.run.costs, name) is not None for entry in entries for name in NAMES if name != "parameters"
    )


def words(costs: Sequence[Costs]) -> list[str]:
    """Of the runs of a setting, their means, in the order of `TITLES`; a dash for what no run has."""
    share = SHARE if any(each.is_share for each in costs) else ""
    train, sample, evaluate, memory, parameters, size = means(costs)
    return [
        DASH if math.isnan(train) else f"{share}{duration(train)}",
        duration(sample),
        duration(evaluate),
        DASH if math.isnan(memory) else f"{share}{byte_size(round(memory * _MIB))}",
        DASH if math.isnan(parameters) else f"{parameters:,.0f}",
        DASH if math.isnan(size) else byte_size(round(size)),
    ]


def means(costs: Sequence[Costs]) -> list[float]:
    """Of the runs of a setting, in the order of `TITLES`: seconds, MiB, a number, bytes; NaN for what no run has."""
    return [_mean(costs, name) for name in _COUNTED]


def _mean(costs: Sequence[Costs], name: str) -> float:
    values = [value for each in costs if (value := getattr(each, name)) is not None]
    return math.fsum(values) / len(values) if values else math.nan


def duration(seconds: float) -> str:
    """Seconds below two minutes, then minutes and hours; a dash for NaN."""
    if math.isnan(seconds):
        return DASH
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d}"
