"""DreamSim (Fu et al., arXiv 2306.09344): a perceptual distance that was tuned on people's judgements.

Needs the package `dreamsim`, which fetches its weights at first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dbexp.config.fields import choice
from dbexp.evaluate.columns import Column
from dbexp.evaluate.metrics.base import Metric, Scores, Seen, ToReal

if TYPE_CHECKING:
    import torch

    from dbexp.core.store import Store

_TYPES = ("ensemble", "dino_vitb16", "clip_vitb32", "open_clip_vitb32", "dinov2_vitb14", "synclr_vitb16")


@dataclass
class DreamSimConfig:
    """Which DreamSim."""

    type: str = choice("ensemble", _TYPES)
    """Its backbones."""
    weights: str | None = None
    """Folder of its weights, fetched there at first use; null: dreamsim in the user's cache directory."""


class DreamSim(Metric):
    """Mean distance of samples to the real images."""

    columns: ClassVar[Mapping[str, Column]] = {
        "dreamsim": Column("DreamSim", "lower", 0, 2, "Mean perceptual distance of samples to real images.")
    }
    Settings = DreamSimConfig

    @classmethod
    def open_network(cls, settings: DreamSimConfig, device: torch.device, store: Store | None) -> Any:
        from dbexp.evaluate.backbones.dreamsim import DreamSimNetwork

        return DreamSimNetwork(settings, device)

    def look(self, seen: Seen) -> Scores:
        from dbexp.evaluate.features import attempt, embed

        space = attempt(self.name, lambda: embed(self.network, seen.files, seen.batch_size, seen.cache))
        return ToReal(space, seen.real, ("dreamsim",), is_distance=True)


METRIC = DreamSim
