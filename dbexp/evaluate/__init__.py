"""The metrics: pure formulas in `functional`, one thin file per backbone, the record in `report`.

Importing this package loads no network library; the backbones are imported where they are used.
"""

from dbexp.evaluate.functional import (
    COLUMNS,
    METRIC_VERSION,
    Column,
    Estimate,
    Resampling,
    over_subjects,
    paired_difference,
)
from dbexp.evaluate.report import Copy, ImageScores, PromptScores, Report, summary

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
