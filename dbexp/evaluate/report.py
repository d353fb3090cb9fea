"""The record of an evaluation: every number, what it rests on, and why the missing ones are missing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from dbexp.core.files import readable
from dbexp.evaluate.functional import METRIC_VERSION, Estimate

BACKBONES = ("dino", "clip", "lpips")
"""Those that every evaluation has."""


@dataclass(frozen=True)
class PromptScores:
    """The columns of one prompt."""

    row: str
    """run or base."""
    prompt: str
    group: str
    """recontextualisation, accessory, property or other."""
    n: int
    """Pictures that count: found, and not black."""
    values: Mapping[str, float]
    """Column -> mean over the prompt's pictures (`div`: over their pairs); NaN where there is none."""


@dataclass(frozen=True)
class ImageScores:
    """The columns of one sample."""

    row: str
    """run or base."""
    prompt: str
    index: int
    """k: position among the prompt's pictures, which is the position of its seed."""
    path: str
    """As the caller gave it."""
    values: Mapping[str, float]
    """dino, clip_i, clip_t, clip_t_token, dino_max; of a class image pres, and div_prior: its mean distance to the
    others. NaN where a backbone failed."""
    nearest: str | None
    """Path of the real image with the largest DINO cosine; null without real images or DINO."""


@dataclass(frozen=True)
class Copy:
    """A sample that is nearer to a real image than any two real images are to each other."""

    path: str
    nearest: str
    similarity: float
    """DINO cosine of the two."""


@dataclass(frozen=True)
class Report:
    """Everything that `evaluate` found.

    `rows` holds the columns of three rows: `run` (adapter on), `base` (adapter off, when its samples were given) and
    `real`: `dino` and `clip_i` of the real images among themselves, the upper bound; `clip_t` of these under the
    prompts, as of samples that show the subject and nothing of the prompt.
    """

    label: str | None
    """Printed beside every number when not null: the backbones are not the paper's."""
    token: str
    class_noun: str
    backbones: Mapping[str, str]
    """dino, clip, lpips, and whatever the config adds -> id."""
    settings: Mapping[str, float | int]
    """resamples, confidence and seed of the intervals."""
    rows: Mapping[str, Mapping[str, Estimate]]
    groups: Mapping[str, Mapping[str, Estimate]]
    """Prompt group -> column -> mean over that group, adapter on."""
    prompts: tuple[PromptScores, ...]
    images: tuple[ImageScores, ...]
    copies: tuple[Copy, ...]
    """Of row `run`; `copy_threshold` is what they exceed."""
    copy_threshold: float
    """Largest DINO cosine of two real images; NaN for fewer than two."""
    notes: tuple[str, ...] = ()
    """Warnings, as sentences."""
    class_images: tuple[ImageScores, ...] = ()
    """`pres` of every picture of the class, its `index` that of its seed; empty in records of older versions."""
    cost: Mapping[str, float | str | None] = field(default_factory=dict, compare=False)
    """Seconds and memory of its making, as `dbexp.core.cost` has them; features that were known cost nothing. Empty
    where that is not on record."""
    metric_version: int = field(default=METRIC_VERSION)

    def to_json(self) -> str:
        """Strict JSON, NaN as null."""
        return readable(self.plain())

    def plain(self) -> dict[str, Any]:
        """The same as dicts and lists."""
        data: dict[str, Any] = _plain(self)
        return data

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote; raises as `from_plain` does."""
        return cls.from_plain(json.loads(text))

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Report:
        """The report that `plain` gave.

        Raises:
            ValueError: it was written by another metric version, whose numbers are not comparable.
        """
        data = dict(plain)
        if data["metric_version"] != METRIC_VERSION:
            raise ValueError(f"metric_version {data['metric_version']} is not {METRIC_VERSION}: evaluate again")
        data["rows"] = {row: _estimates(columns) for row, columns in data["rows"].items()}
        data["groups"] = {group: _estimates(columns) for group, columns in data["groups"].items()}
        data["prompts"] = tuple(PromptScores(**{**p, "values": _floats(p["values"])}) for p in data["prompts"])
        for pictures in ("images", "class_images"):
            records = data.get(pictures, ())
            data[pictures] = tuple(ImageScores(**{**i, "values": _floats(i["values"])}) for i in records)
        data["copies"] = tuple(Copy(**copy) for copy in data["copies"])
        data["copy_threshold"] = _float(data["copy_threshold"])
        data["notes"] = tuple(data["notes"])
        return cls(**data)


def summary(report: Report) -> dict[str, float]:
    """Column -> value of the row `run`: flat, for tracking, sweepers and tables. NaN where there is none."""
    return {column: estimate.value for column, estimate in report.rows["run"].items()}


def _estimates(columns: Mapping[str, Mapping[str, Any]]) -> dict[str, Estimate]:
    return {
        name: Estimate(_float(e["value"]), _float(e["low"]), _float(e["high"]), e["n"], e["reason"])
        for name, e in columns.items()
    }


def _floats(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _float(value) for name, value in values.items()}


def _float(value: float | None) -> float:
    return math.nan if value is None else value


def _plain(node: Any) -> Any:
    """Dataclasses as dicts, tuples as lists, NaN as None, all the way down."""
    if isinstance(node, float):
        return None if math.isnan(node) else node
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_plain(value) for value in node]
    return _plain(vars(node)) if is_dataclass(node) else node
