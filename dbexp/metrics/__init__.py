"""The metrics: pure formulas in `functional`, one thin file per backbone, the record in `report`.

Importing this package loads no network library; the backbones are imported where they are used.
"""

from dbexp.metrics.functional import (
    COLUMNS,
    METRIC_VERSION,
    Column,
    Estimate,
    Resampling,
    over_subjects,
    paired_difference,
)
from dbexp.metrics.report import Copy, ImageScores, PromptScores, Report, summary

__all__ = [
    "COLUMNS",
    "METRIC_VERSION",
    "Column",
    "Copy",
    "Estimate",
    "ImageScores",
    "PromptScores",
    "Report",
    "Resampling",
    "over_subjects",
    "paired_difference",
    "summary",
]
