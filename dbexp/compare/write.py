"""The files of a comparison, rebuilt from disk: five tables, results.md and report.html."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dbexp.compare.benchmark import BENCHMARK, benchmark_csv
from dbexp.compare.comparison import Comparison
from dbexp.compare.costs import COSTS, costs_csv
from dbexp.compare.effects_table import EFFECTS, effects_csv
from dbexp.compare.gather import compare
from dbexp.compare.markdown import MARKDOWN, markdown
from dbexp.compare.recommendation import RECOMMENDATION, recommendation_csv
from dbexp.compare.results import RESULTS, csv_text
from dbexp.compare.scores import PICTURES
from dbexp.core.files import sweep_up, write_atomic
from dbexp.runs.record import UNFINISHED


@dataclass(frozen=True)
class ComparisonFiles:
    """What was compared, and the files that say it."""

    comparison: Comparison
    csv: Path
    pictures: Path
    effects: Path
    markdown: Path
    page: Path
    recommendation: Path
    costs: Path


def write_comparison(
    sweeps: Sequence[Path], objective: str | None = None, folder: Path | None = None, is_running: bool = False
) -> ComparisonFiles:
    """Read sweeps and write what they say.

    Args:
        sweeps: folders of sweeps, or of single runs.
        objective: what ranks; None: the runs' own.
        folder: where the files go; None: the sweep's own, which there must then be one of.
        is_running: whether runs are still to come.

    Raises:
        ConfigError: a folder holds no run, or there is no such column.
        OSError: the files cannot be written.
    """
    from dbexp.compare.page.page import PAGE, page  # jinja and plotly: nobody else needs them

    folder = folder or sweeps[0]
    comparison = compare(sweeps, objective)
    ended = [entry.run for entry in comparison.entries if entry.run.status != UNFINISHED]
    files = ComparisonFiles(
        comparison, *(folder / name for name in (RESULTS, PICTURES, EFFECTS, MARKDOWN, PAGE, RECOMMENDATION, COSTS))
    )
    sweep_up(folder)
    write_atomic(files.csv, csv_text(ended, comparison.objective, comparison.names))
    write_atomic(files.pictures, comparison.pictures.csv())
    write_atomic(files.effects, effects_csv(comparison))
    of = comparison.recommendation
    write_atomic(files.recommendation, recommendation_csv(of, comparison.finished, comparison.factors))
    write_atomic(files.costs, costs_csv(comparison.finished, comparison.factors))
    if comparison.benchmark:
        write_atomic(folder / BENCHMARK, benchmark_csv(comparison.benchmark))
    write_atomic(files.markdown, markdown(comparison))
    write_atomic(files.page, page(comparison, folder, is_running=is_running))
    return files
