"""What metrics that a config adds have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dbexp.evaluate.columns import Column

if TYPE_CHECKING:
    import torch

    from dbexp.core.store import Store
    from dbexp.evaluate.feature_cache import FeatureCache
    from dbexp.evaluate.features import Space
    from dbexp.evaluate.functional import FloatArray
    from dbexp.evaluate.pictures import ImageFile


@dataclass(frozen=True)
class Seen:
    """What a metric may look at.

    Attributes:
        real: the real images.
        files: these, and every sample and class image.
        texts: prompt -> the prompt without its token.
        batch_size: pictures at once.
        cache: of features; None: all are computed.
    """

    real: Sequence[ImageFile]
    files: Sequence[ImageFile]
    texts: Mapping[str, str]
    batch_size: int
    cache: FeatureCache | None


class Scores(ABC):
    """What a metric makes of the pictures of one evaluation.

    Attributes:
        reason: why no picture has a value; None: they have.
    """

    reason: str | None = None

    @abstractmethod
    def of_samples(self, prompt: str, files: Sequence[ImageFile]) -> Mapping[str, FloatArray]:
        """Column -> [K], of samples of one prompt."""

    def of_class(self, files: Sequence[ImageFile]) -> Mapping[str, FloatArray]:
        """Column -> [C], of class images; nothing unless a metric says otherwise."""
        return {}

    def of_real(self) -> Mapping[str, FloatArray]:
        """Column -> a value per real image, as an upper bound; nothing unless a metric says otherwise."""
        return {}


class Metric(ABC):
    """A metric under a name that the config gives it; its columns are called COLUMN@NAME.

    Args:
        name: in the config.
        settings: of the class `Settings`.
        network: what `open_network` gave.
    """

    columns: ClassVar[Mapping[str, Column]]
    """Of samples, and of class images."""
    of_class: ClassVar[tuple[str, ...]] = ()
    """Those of class images."""
    Settings: ClassVar[type]
    """A dataclass."""

    def __init__(self, name: str, settings: Any, network: Any) -> None:
        self.name, self.settings, self.network = name, settings, network

    @classmethod
    @abstractmethod
    def open_network(cls, settings: Any, device: torch.device, store: Store | None) -> Any:
        """The network: something with `id`, `transform` and `random`, as in `dbexp.evaluate.backbones.base`.

        Raises:
            ConfigError: it cannot be had.
        """

    @abstractmethod
    def look(self, seen: Seen) -> Scores:
        """Compute what scores need."""

    def depends_on(self, real: Sequence[Path]) -> list[Any]:
        """What the scores depend on besides pictures and network, for the key of the report."""
        return []

    @property
    def sample_columns(self) -> tuple[str, ...]:
        """Full names of the columns that samples have."""
        return tuple(self.full(column) for column in self.columns if column not in self.of_class)

    @property
    def class_columns(self) -> tuple[str, ...]:
        """Full names of the columns that class images have."""
        return tuple(self.full(column) for column in self.of_class)

    def full(self, column: str) -> str:
        """Name of a column in tables."""
        return f"{column}@{self.name}"


class ToReal(Scores):
    """Mean cosine to the real images, or mean cosine distance.

    Args:
        space: of all pictures.
        real: what they are compared with.
        columns: of samples, and of class images if these are compared too.
        is_distance: 1 minus the cosine.
    """

    def __init__(
        self, space: Space, real: Sequence[ImageFile], columns: Sequence[str], is_distance: bool = False
    ) -> None:
        self.reason = space.failure or (None if real else "no real images")
        self._space, self._real, self._columns, self._is_distance = space, real, columns, is_distance

    def of_samples(self, prompt: str, files: Sequence[ImageFile]) -> Mapping[str, FloatArray]:
        return {self._columns[0]: self._mean(files)}

    def of_class(self, files: Sequence[ImageFile]) -> Mapping[str, FloatArray]:
        return {column: self._mean(files) for column in self._columns[1:]}

    def of_real(self) -> Mapping[str, FloatArray]:
        from dbexp.evaluate.functional import mean_to_others

        if len(self._real) < 2:
            return {}
        return {self._columns[0]: self._signed(mean_to_others(self._space.of(self._real)))}

    def _mean(self, files: Sequence[ImageFile]) -> FloatArray:
        return self._signed((self._space.of(files) @ self._space.of(self._real).T).mean(axis=1))

    def _signed(self, cosines: FloatArray) -> FloatArray:
        return 1 - cosines if self._is_distance else cosines
