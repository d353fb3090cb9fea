"""Metrics that a config adds under `evaluate.more`: read and checked before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dbexp.config import fields
from dbexp.core.errors import first_line
from dbexp.evaluate.metrics import kinds
from dbexp.evaluate.metrics.base import Metric

_BUILT_IN = ("dino", "clip", "lpips")


def added(more: Mapping[str, Any], problems: list[str]) -> list[tuple[str, type[Metric], Any]]:
    """Name, metric and settings of each.

    Args:
        more: name -> `metric`, the kind, and the settings of that kind.
        problems: gets a message for each that is wrong, which is left out.
    """
    metrics = []
    for name, values in more.items():
        field = f"evaluate.more.{name}"
        kind = values.get("metric") if isinstance(values, Mapping) else None
        if not str(name).isidentifier() or name in _BUILT_IN:
            problems.append(f"{field}: a name is letters, digits and _, and none of {', '.join(_BUILT_IN)}")
        elif kind not in kinds():
            problems.append(f"{field}.metric={kind}: choose one of {', '.join(kinds())}")
        else:
            metric = kinds()[kind]
            try:
                rest = {key: value for key, value in values.items() if key != "metric"}
                settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(metric.Settings), rest))
            except OmegaConfBaseException as error:
                problems.append(f"{field}.{error.full_key or kind}: {first_line(error)}")
                continue
            wrong = fields.problems(settings, f"{field}.")
            problems += wrong
            if not wrong:
                metrics.append((str(name), metric, settings))
    return metrics


def columns_of(more: Mapping[str, Any]) -> tuple[str, ...]:
    """Full names of the columns that these add."""
    return tuple(f"{column}@{name}" for name, kind, _ in added(more, []) for column in kind.columns)
