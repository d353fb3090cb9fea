"""Every column of the metric table, declared once: tables, plots, sweepers and tracking read it here."""

from __future__ import annotations

import math
from dataclasses import dataclass
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

PAPER = ("dino", "clip_i", "clip_t", "pres", "div")
"""The columns of the paper's tables, in the order shown."""

REFERENCES = {"base": "base model", "oracle": "true subject", "real": "real images"}
"""Rows that no training run owns: key in a report -> name shown."""

_ARROWS = {"higher": " ↑", "lower": " ↓", "neither": ""}


def heading(column: str) -> str:
    """Title of a column with the arrow of its better direction."""
    return COLUMNS[column].title + _ARROWS[COLUMNS[column].better]
