"""How many images are drawn at once: as many as were asked for, or as memory has room for; and of a denoiser that is
compiled few different numbers, since it is compiled for each anew, which takes as long as many images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from dbexp.core import cores
from dbexp.models import Model

MOST_AT_ONCE = 32
"""Images of which more at once would draw no faster on any card of today: with guidance they are twice as many rows."""
_IDLE = 1.25
"""Rows of a batch to those that are asked for, up to which a number that is compiled already is taken for a set."""

Part = TypeVar("Part")


@dataclass
class _Compiled:
    """What a denoiser was compiled for in this process.

    Attributes:
        sizes: images at once.
        most: that memory has room for; None: that was not measured.
    """

    sizes: set[int] = field(default_factory=set)
    most: int | None = None


_compiled: WeakKeyDictionary[Any, dict[tuple[str, int, int], _Compiled]] = WeakKeyDictionary()
"""Base model -> how it is compiled, width and height -> what for."""


class Sizes:
    """Of the batches of a set.

    Args:
        model: the base.
        compiled: what of the denoiser is, see `dbexp.models.compiled`.
        batch_size: images at once that were asked for.
        grows: whether it may be more on a GPU.
        width, height: of an image in pixels.

    Attributes:
        most: images at once from here on.
        seats: images that every batch has, of which some may be idle; None: each has its own number.
    """

    def __init__(self, model: Model, compiled: str, batch_size: int, grows: bool, width: int, height: int) -> None:
        self.most = self._size = self._batch_size = batch_size
        self.seats: int | None = None
        self._grows = grows and model.device.type == "cuda"
        self._compiled: _Compiled | None = None
        if compiled != "none":
            self._compiled = _compiled.setdefault(model, {}).setdefault((compiled, width, height), _Compiled())
            if self._grows and self._compiled.most is not None:
                self.most, self._grows = self._compiled.most, False

    @property
    def measures(self) -> bool:
        """Whether the first of several batches has to show how many memory has room for; so it is not compiled for."""
        return self._grows

    def cut(self, images: Sequence[Part]) -> list[Sequence[Part]]:
        """The batches of a set."""
        self._size = self.most if self._compiled is None or self._grows else self._fitting(len(images))
        return _pieces(images, self._size)

    def regroup(self, images: Sequence[Part], count: int) -> list[Sequence[Part]]:
        """Those of what is left of a set of so many, after `grow`."""
        if self._compiled is None:
            return cores.split(images, ceil(len(images) / self.most))
        self._size = self._fitting(count)
        return _pieces(images, self._size)

    def settle(self) -> None:
        """What was cut last is drawn next."""
        if self._compiled is not None:
            self._seat(self._size)

    def seated(self, batch: Sequence[Part]) -> Sequence[Part]:
        """A batch with its idle seats taken by its last image."""
        return [*batch, *[batch[-1]] * ((self.seats or 0) - len(batch))]

    def grow(self, most: int) -> None:
        """Memory has room for so many at once; unless it did not suffice for the first batch, they are drawn so."""
        if self.most == self._batch_size:
            self.most = max(self.most, min(most, MOST_AT_ONCE))
        self._grows = False
        if self._compiled is not None:
            self._compiled.most = self.most

    def halve(self, size: int) -> int | None:
        """Memory did not suffice for so many. How many it shall be now; None: no fewer than before."""
        half = size // 2
        if half >= self.most:
            return None
        self.most = half
        if self._compiled is not None and self.seats is not None:
            self._compiled.most = half
            self._seat(half)
        return half

    def _fitting(self, count: int) -> int:
        """Images of each batch of a set of so many."""
        assert self._compiled is not None
        needed = ceil(count / ceil(count / self.most)) if count else 1
        fitting = [size for size in self._compiled.sizes if needed <= size <= min(self.most, _IDLE * needed)]
        return min(fitting, default=needed)

    def _seat(self, size: int) -> None:
        assert self._compiled is not None
        self.seats = size
        self._compiled.sizes.add(size)


def _pieces(images: Sequence[Part], size: int) -> list[Sequence[Part]]:
    return [images[start : start + size] for start in range(0, len(images), size)]
