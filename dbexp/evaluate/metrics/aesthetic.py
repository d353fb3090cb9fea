"""An aesthetic score: linear layers on the CLIP embedding of a picture, trained on people's marks from 1 to 10.

LAION's predictors (Schuhmann et al., arXiv 2210.08402): version 1 is one linear layer, version 2 five of them without
anything between, both on unit vectors of OpenAI's ViT-L/14. A file of their weights says how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dbexp.config.schema import ClipConfig
from dbexp.evaluate.columns import Column
from dbexp.evaluate.metrics.base import Metric, Scores, Seen

if TYPE_CHECKING:
    import torch

    from dbexp.core.store import Store
    from dbexp.evaluate.features import Space
    from dbexp.evaluate.functional import FloatArray
    from dbexp.evaluate.pictures import ImageFile

Layers = Sequence[tuple[Any, Any]]
"""Weight [out, in] and bias [out] of each layer, float64."""


@dataclass
class AestheticConfig(ClipConfig):
    """CLIP, and the layers on it."""

    head: str | None = None
    """State dict of the linear layers, in order; random: one layer of seeded random weights."""


class _Network:
    """CLIP with its head, under one identity."""

    def __init__(self, clip: Any, layers: Layers, head: str) -> None:
        from dbexp.core.hashing import key_of

        self.clip, self.layers = clip, layers
        digest = key_of({"layers": [[weight.tolist(), bias.tolist()] for weight, bias in layers]})[:12]
        self.id, self.transform = f"{clip.id}+aesthetic/sha256:{digest}", clip.transform
        self.random = clip.random or head == "random"

    def leave(self) -> None:
        """Free the device; the head is not there."""
        self.clip.leave()


class _Aesthetic(Scores):
    def __init__(self, space: Space, layers: Layers) -> None:
        self.reason, self._space, self._layers = space.failure, space, layers

    def of_samples(self, prompt: str, files: Sequence[ImageFile]) -> Mapping[str, FloatArray]:
        from dbexp.core.errors import ConfigError

        values, takes = self._space.of(files), self._layers[0][0].shape[1]
        if values.shape[1] != takes:
            raise ConfigError(
                f"the head of the aesthetic score takes {takes} numbers, and its CLIP has {values.shape[1]}"
            )
        for weight, bias in self._layers:
            values = values @ weight.T + bias
        return {"aesthetic": values[:, 0]}


class Aesthetic(Metric):
    """The mark that people would give a sample, whatever its prompt."""

    columns: ClassVar[Mapping[str, Column]] = {
        "aesthetic": Column("aesthetic", "higher", 0, 10, "The mark from 1 to 10 people would give.")
    }
    Settings = AestheticConfig

    @classmethod
    def open_network(cls, settings: AestheticConfig, device: torch.device, store: Store | None) -> Any:
        from dataclasses import fields

        from dbexp.core.errors import ConfigError
        from dbexp.evaluate.backbones.deferred import open_backbone

        if settings.head is None:
            raise ConfigError("head=null: give the file of the aesthetic predictor's layers, or random")
        of_clip = ClipConfig(**{field.name: getattr(settings, field.name) for field in fields(ClipConfig)})
        clip = open_backbone(of_clip, device, store)
        layers = _random(clip) if settings.head == "random" else _layers(settings.head)
        return _Network(clip, layers, settings.head)

    def look(self, seen: Seen) -> Scores:
        from dbexp.evaluate.features import attempt, embed

        clip = self.network.clip
        space = attempt(self.name, lambda: embed(clip, seen.files, seen.batch_size, seen.cache))
        return _Aesthetic(space, self.network.layers)


def _random(clip: Any) -> Layers:
    """One layer of seeded random weights."""
    import numpy as np

    width = clip.embed_texts(["a"]).shape[1]
    return [(np.random.default_rng(0).normal(size=(1, width)), np.zeros(1))]


def _layers(head: str) -> Layers:
    """Of a file.

    Raises:
        ConfigError: it is none, or its layers are no chain.
    """
    from dbexp.core.errors import ConfigError
    from dbexp.evaluate.backbones.base import read_state_dict

    tensors = {name: tensor.double().numpy() for name, tensor in read_state_dict(head, "head").items()}
    layers = [(weight, tensors.get(f"{name[:-6]}bias")) for name, weight in tensors.items() if name.endswith("weight")]
    fit = bool(layers) and all(weight.ndim == 2 and bias is not None for weight, bias in layers)
    if fit:
        takes, gives = [weight.shape[1] for weight, _ in layers], [weight.shape[0] for weight, _ in layers]
        fit = takes[1:] == gives[:-1] and gives[-1] == 1
    if not fit:
        raise ConfigError(f"head={head}: is no chain of linear layers that ends in one number")
    return layers


METRIC = Aesthetic
