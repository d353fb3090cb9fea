"""Published rows, to stand beside runs that repeat the experiment: marked as such, with their source and backbones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_PAPER = "Ruiz et al., CVPR 2023, arXiv 2208.12242"
_BACKBONES = "DINO ViT-S/16, CLIP ViT-B/32, LPIPS"
_TABLE = "reference table of one run each: dog3, seed 42, 4 images per live prompt, Tesla T4"
_UNKNOWN = "as its notebook chose them"


@dataclass(frozen=True)
class PublishedRow:
    """A row of somebody's table.

    Attributes:
        title: what it is of.
        columns: column -> value as printed there.
        source: where it is printed.
        backbones: what measured it, as far as the source says.
        experiment: preset that repeats it; empty for none.
    """

    title: str
    columns: Mapping[str, float]
    source: str
    backbones: str
    experiment: str = ""


def _table_1(title: str, dino: float, clip_i: float, clip_t: float | None) -> PublishedRow:
    columns = {"dino": dino, "clip_i": clip_i} | ({} if clip_t is None else {"clip_t": clip_t})
    return PublishedRow(title, columns, f"{_PAPER}, table 1 (30 subjects)", _BACKBONES)


def _full(title: str, values: tuple[float, ...], source: str, backbones: str, experiment: str = "") -> PublishedRow:
    columns = dict(zip(("pres", "div", "dino", "clip_i", "clip_t"), values, strict=True))
    return PublishedRow(title, columns, source, backbones, experiment)


PAPER_ROWS = (
    _table_1("real images", 0.774, 0.885, None),
    _table_1("DreamBooth, Imagen", 0.696, 0.812, 0.306),
    _table_1("DreamBooth, Stable Diffusion", 0.668, 0.803, 0.305),
    _table_1("Textual Inversion, Stable Diffusion", 0.569, 0.780, 0.255),
    PublishedRow(
        "Custom Diffusion, Stable Diffusion",
        {"dino": 0.643, "clip_i": 0.790, "clip_t": 0.305},
        "Ma et al., SIGGRAPH 2024, arXiv 2307.11410, table 1 (DreamBooth's 30 subjects)",
        "DINO, CLIP-I and CLIP-T, networks as that paper chose them",
    ),
    *(
        _full(f"DreamBooth, Imagen, {title}", values, f"{_PAPER}, table 3 (15 subjects)", _BACKBONES)
        for title, values in (
            ("with prior preservation", (0.493, 0.391, 0.684, 0.815, 0.308)),
            ("without", (0.664, 0.371, 0.712, 0.828, 0.306)),
        )
    ),
)
"""DreamBooth's tables 1 and 3; and Custom Diffusion as others measured it in the form of table 1, for its own paper
(Kumari et al., arXiv 2212.04488) has other subjects and columns. That row is taken from transcriptions of two papers
that print it (2307.11410 and 2411.17786), which agree."""

REFERENCE_ROWS = tuple(
    _full(experiment, values, _TABLE, _UNKNOWN, f"reference/{experiment}")
    for experiment, values in {
        "cloneofsimo/without_prior_300": (0.3196423, 0.5589787364, 0.32925552, 0.730297, 0.24568156),
        "cloneofsimo/without_prior_800": (0.34639186, 0.5937337279, 0.3557735, 0.74170953, 0.24260017),
        "cloneofsimo/with_prior_2000": (0.19029397, 0.5717885494, 0.24086858, 0.72657603, 0.24252593),
        "diffusers/with_prior": (0.22252478, 0.5189799666, 0.5051674, 0.77529675, 0.24541661),
        "diffusers/without_prior": (0.51517344, 0.5368546843, 0.521899, 0.77498657, 0.24194836),
        "diffusers/polynomial": (0.20639181, 0.5647251606, 0.40241632, 0.7358104, 0.23995987),
        "diffusers/rank32": (0.16710602, 0.4927567542, 0.4840748, 0.7708441, 0.23909402),
    }.items()
)
"""The seven rows that experiment=reference/* repeats."""


def published(experiments: Iterable[str], is_labelled: bool) -> tuple[PublishedRow, ...]:
    """Rows that belong beside runs of some presets.

    Args:
        experiments: `experiment` of the runs.
        is_labelled: whether their numbers carry a label, and so may be held against nobody else's.
    """
    presets = set(experiments)
    if is_labelled:
        return ()
    rows = PAPER_ROWS if any(preset.startswith("benchmark/") for preset in presets) else ()
    return (*rows, *(row for row in REFERENCE_ROWS if row.experiment in presets))
