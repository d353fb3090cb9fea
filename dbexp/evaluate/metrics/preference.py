"""A preference score: the cosine of sample and prompt under a CLIP that was trained on what people chose.

HPS v2 (Wu et al., arXiv 2306.09341) is open_clip's ViT-H-14 with weights of its own: its score is this cosine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dbexp.config.schema import ClipConfig
from dbexp.evaluate.columns import Column
from dbexp.evaluate.metrics.base import Metric, Scores, Seen
from dbexp.evaluate.metrics.clip import ToText, spaces

if TYPE_CHECKING:
    import torch

    from dbexp.core.store import Store


class Preference(Metric):
    """Cosine of samples to their prompts, token left out."""

    columns: ClassVar[Mapping[str, Column]] = {
        "preference": Column("preference", "higher", -1, 1, "What people would choose: cosine of sample and prompt.")
    }
    Settings = ClipConfig

    @classmethod
    def open_network(cls, settings: ClipConfig, device: torch.device, store: Store | None) -> Any:
        from dbexp.evaluate.backbones.deferred import open_backbone

        return open_backbone(settings, device, store)

    def look(self, seen: Seen) -> Scores:
        return ToText(*spaces(self.name, self.network, seen), seen, "preference")


METRIC = Preference
