"""CLIP-I and CLIP-T through any model of open_clip: CLIP ViT-L/14, SigLIP 2 and the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from dbexp.config.schema import ClipConfig
from dbexp.evaluate.columns import COLUMNS, Column
from dbexp.evaluate.metrics.base import Metric, Scores, Seen, ToReal

if TYPE_CHECKING:
    import torch

    from dbexp.core.store import Store
    from dbexp.evaluate.features import Space
    from dbexp.evaluate.functional import FloatArray
    from dbexp.evaluate.pictures import ImageFile


class ToText(Scores):
    """Cosine to the prompt without its token.

    Args:
        space: of all pictures.
        words: of the prompts without their tokens.
        seen: what is looked at.
        column: of the result.
    """

    def __init__(self, space: Space, words: Space, seen: Seen, column: str) -> None:
        self.reason = space.failure or words.failure
        self._space, self._words, self._texts, self._column = space, words, seen.texts, column

    def of_samples(self, prompt: str, files: Sequence[ImageFile]) -> Mapping[str, FloatArray]:
        return {self._column: self._space.of(files) @ self._words.vectors[self._texts[prompt]]}


class _Both(Scores):
    def __init__(self, image: ToReal, text: ToText) -> None:
        self._image, self._text, self.reason = image, text, text.reason or image.reason

    def of_samples(self, prompt: str, files: Sequence[ImageFile]) -> Mapping[str, FloatArray]:
        return {**self._image.of_samples(prompt, files), **self._text.of_samples(prompt, files)}

    def of_real(self) -> Mapping[str, FloatArray]:
        return self._image.of_real()


def spaces(name: str, network: Any, seen: Seen) -> tuple[Space, Space]:
    """Pictures and prompts under a network for both."""
    from dbexp.evaluate.features import attempt, embed, embed_texts

    texts = sorted(set(seen.texts.values()))
    return (
        attempt(name, lambda: embed(network, seen.files, seen.batch_size, seen.cache)),
        attempt(name, lambda: embed_texts(network, texts, seen.cache)),
    )


class Clip(Metric):
    """Mean cosine of samples to the real images, and to their prompts."""

    columns: ClassVar[Mapping[str, Column]] = {name: COLUMNS[name] for name in ("clip_i", "clip_t")}
    Settings = ClipConfig

    @classmethod
    def open_network(cls, settings: ClipConfig, device: torch.device, store: Store | None) -> Any:
        from dbexp.evaluate.backbones.deferred import open_backbone

        return open_backbone(settings, device, store)

    def look(self, seen: Seen) -> Scores:
        pictures, words = spaces(self.name, self.network, seen)
        return _Both(ToReal(pictures, seen.real, ("clip_i",)), ToText(pictures, words, seen, "clip_t"))


METRIC = Clip
