"""Runs side by side: everything is read back from the folders of a sweep, so a table can be made at any time."""

from dbexp.compare.printed import line, print_grid, show
from dbexp.compare.results import RESULTS, csv_text, write_results
from dbexp.compare.statements import Statement, statements
from dbexp.compare.write import Written, write_comparison
from dbexp.runs.differences import differing, titles, what_differs
from dbexp.runs.record import Group, Run, load, over_seeds, ranked, read, scan

__all__ = [
    "RESULTS",
    "Group",
    "Run",
    "Statement",
    "Written",
    "csv_text",
    "differing",
    "line",
    "load",
    "over_seeds",
    "print_grid",
    "ranked",
    "read",
    "scan",
    "show",
    "statements",
    "titles",
    "what_differs",
    "write_comparison",
    "write_results",
]
