"""DINO and PRES through any backbone of timm: DINOv2, DINOv3 and whatever else gives a vector per picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dbexp.config.schema import DinoConfig
from dbexp.evaluate.columns import COLUMNS, Column
from dbexp.evaluate.metrics.base import Metric, Scores, Seen, ToReal

if TYPE_CHECKING:
    import torch

    from dbexp.core.store import Store


class Dino(Metric):
    """Mean cosine of samples to the real images, and of class images."""

    columns: ClassVar[Mapping[str, Column]] = {name: COLUMNS[name] for name in ("dino", "pres")}
    of_class = ("pres",)
    Settings = DinoConfig

    @classmethod
    def open_network(cls, settings: DinoConfig, device: torch.device, store: Store | None) -> Any:
        from dbexp.evaluate.backbones.deferred import open_backbone

        return open_backbone(settings, device, store)

    def look(self, seen: Seen) -> Scores:
        from dbexp.evaluate.features import attempt, embed

        space = attempt(self.name, lambda: embed(self.network, seen.files, seen.batch_size, seen.cache))
        return ToReal(space, seen.real, ("dino", "pres"))


METRIC = Dino
