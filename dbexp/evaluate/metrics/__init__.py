"""Columns that a config adds: a metric is one file of this folder.

A file declares `METRIC`, a subclass of `base.Metric`: its columns, its settings, how its network is opened, and how
pictures are scored. Whatever is heavy it imports inside of its functions, for `dbexp --help` looks columns up too.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from dbexp.evaluate.metrics.base import Metric


@cache
def kinds() -> dict[str, type[Metric]]:
    """Name of a file of this folder -> its metric."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    return {name: importlib.import_module(f"{__name__}.{name}").METRIC for name in names}
