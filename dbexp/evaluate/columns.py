"""Every column of the metric table, declared once: tables, plots, sweepers and tracking read it here."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal


@dataclass(frozen=True)
class Column:
    """What a column of the metric table means."""

    title: str
    """How a reader knows it."""
    better: Literal["higher", "lower", "neither"]
    """Direction of improvement; neither: a reference value that no training run can improve."""
    lower: float
    """Smallest possible value."""
    upper: float
    """Largest possible value; inf where the formula has no bound."""
    doc: str
    """One sentence for a table's legend."""

    @property
    def sign(self) -> int:
        """1 where higher is better, -1 where lower is, 0 for neither: times it, a value is the higher the better."""
        return {"higher": 1, "lower": -1, "neither": 0}[self.better]


COLUMNS: dict[str, Column] = {
    "dino": Column("DINO", "higher", -1, 1, "Subject fidelity: mean DINO cosine of samples and real images."),
    "clip_i": Column("CLIP-I", "higher", -1, 1, "Subject fidelity: mean CLIP cosine of samples and real images."),
    "clip_t": Column(
        "CLIP-T", "higher", -1, 1, "Prompt fidelity: mean CLIP cosine of samples and prompt, token left out."
    ),
    "pres": Column("PRES", "lower", -1, 1, "Prior drift: mean DINO cosine of class images and real images."),
    "div": Column("DIV", "higher", 0, math.inf, "Diversity: mean LPIPS distance of samples of the same prompt."),
    "clip_t_token": Column("CLIP-T token", "higher", -1, 1, "Prompt fidelity with the token left in the prompt."),
    "pres_base": Column("PRES base", "neither", -1, 1, "PRES of the base model: the same seeds with the adapter off."),
    "pres_delta": Column("PRES delta", "lower", -2, 2, "PRES minus that of the base model: drift caused by training."),
    "div_prior": Column(
        "DIV prior", "higher", 0, math.inf, "Diversity of the class images; falls when the prior collapses."
    ),
    "dino_real": Column(
        "DINO real", "neither", -1, 1, "DINO cosine of the real images among themselves: upper bound of dino."
    ),
    "clip_i_real": Column(
        "CLIP-I real", "neither", -1, 1, "CLIP cosine of the real images among themselves: upper bound of clip_i."
    ),
    "dino_max": Column("DINO max", "higher", -1, 1, "Mean over samples of the DINO cosine to the nearest real image."),
    "copy_rate": Column(
        "copy rate", "lower", 0, 1, "Share of samples nearer to a real image than real images are to one another."
    ),
    "n_missing": Column("missing", "lower", 0, math.inf, "Pictures that were expected and not found."),
    "n_blank": Column("blank", "lower", 0, math.inf, "All-black pictures, excluded from every mean."),
}

RECOMMEND = "recommend"
"""Of runs in place of one column: what `dbexp.evaluate.objective` recommends by."""

_SCORE = Column(
    "recommendation", "higher", 0, 1, "Harmonic mean of subject gained, prompt kept and class kept, each from 0 to 1."
)

PAPER = ("dino", "clip_i", "clip_t", "pres", "div")
"""The columns of the paper's tables, in the order shown."""

REFERENCES = {"base": "base model", "oracle": "true subject", "real": "real images"}
"""Rows that no training run owns: key in a report -> name shown."""

_ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}
_TERM = re.compile(r"\s*([+-])?\s*(?:(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*\*\s*)?([a-z]\w*(?:@\w+)?)\s*", re.IGNORECASE)


@cache
def column_of(name: str) -> Column:
    """What is to be known of a column of the table, of `recommend`, or of a trade-off of columns.

    Raises:
        KeyError: there is no such column.
    """
    if name == RECOMMEND:
        return _SCORE
    weights = terms(name)
    if not weights:
        base, at, added = name.partition("@")
        return _labelled(base, added) if at else COLUMNS[name]
    parts = [
        f"{'−' if weight < 0 else '+'} {abs(weight):g} {column_of(each).title}" for each, weight in weights.items()
    ]
    title = " ".join(parts).removeprefix("+ ")
    return Column(title, "higher", -math.inf, math.inf, "A trade-off: the higher the better.")


def _labelled(base: str, added: str) -> Column:
    """A column that a config adds, with the name that it has there: that of its backbone."""
    about = _added()[base]
    return replace(about, title=f"{about.title} {added}", doc=f"{about.doc} By {added}.")


@cache
def _added() -> dict[str, Column]:
    """Column -> what is to be known of it, of every metric that a config may add."""
    kinds = importlib.import_module("dbexp.evaluate.metrics").kinds()
    return {name: column for kind in kinds.values() for name, column in kind.columns.items()}


def is_column(name: str) -> bool:
    """Whether there is such a column: one of the table, or COLUMN@NAME of one that a config adds."""
    base, at, added = name.partition("@")
    return base in _added() and added.isidentifier() if at else name in COLUMNS


def terms(name: str) -> dict[str, float]:
    """Column -> its weight in a trade-off such as `0.5*dino - 0.2*pres`; empty for anything else.

    Args:
        name: a sum with at least one `*` or minus sign, for `dino+clip_t` is two objectives.
    """
    if "*" not in name and "-" not in name:
        return {}
    weights: dict[str, float] = {}
    position = 0
    while position < len(name):
        term = _TERM.match(name, position)
        if term is None or (position and term[1] is None):
            return {}
        weight = float(term[2] or 1) * (-1 if term[1] == "-" else 1)
        weights[term[3]] = weights.get(term[3], 0.0) + weight
        position = term.end()
    return weights


def in_order(names: Iterable[str]) -> list[str]:
    """Each once: the columns of `COLUMNS` as they stand there, then others as they come; what is none is left out."""
    present = [name for name in dict.fromkeys(names) if name == RECOMMEND or is_column(name)]
    return [*(name for name in COLUMNS if name in present), *(name for name in present if name not in COLUMNS)]


def heading(name: str) -> str:
    """Title of a column with the arrow of its better direction."""
    about = column_of(name)
    return about.title + _ARROWS[about.better]
