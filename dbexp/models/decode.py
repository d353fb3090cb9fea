"""A VAE that decodes as many images at a time as memory has room for: of a batch it may need more than the denoiser."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dbexp.core.cost import Peak
from dbexp.core.device import is_out_of_memory, release_memory, unused_memory

_SHARE = 0.9
"""Part of the free memory that decoding may take."""


class Decoder:
    """In the place of a VAE's method `decode`.

    On a GPU the first image is decoded alone, which tells what one takes; the others, and those of later batches, as
    many at a time as there is room for. On a CPU, whose memory nobody measures so, all are decoded at once. Where
    memory does not suffice, half as many go on, and a single image tile by tile.

    Args:
        vae: of diffusers.

    Attributes:
        tiled: whether whole images have turned out too large.
    """

    def __init__(self, vae: Any) -> None:
        self.tiled = False
        # weakly, as the VAE has this: or it would stay in memory, when it is let go, until Python looks for circles
        self._vae, self._method = weakref.ref(vae), weakref.WeakMethod(vae.decode)
        self._most: int | None = None
        self._bytes: dict[tuple[int, ...], int] = {}
        """Shape of an image's latents -> bytes that decoding it takes."""

    def __call__(self, z: Tensor, return_dict: bool = True, **options: Any) -> Any:
        """As the VAE's own.

        Args:
            z: [B, C, h, w].
        """
        results: list[Any] = []
        at = 0
        while at < len(z):
            rows = z[at : at + self._rows(z)]
            try:
                results.append(self._measured(rows, return_dict, options))
                at += len(rows)
                continue
            except Exception as error:
                if not is_out_of_memory(error) or not self._retreat(len(rows)):
                    raise
            release_memory()  # beyond the handler nothing refers to what was computed
        return _joined(results)

    def _rows(self, z: Tensor) -> int:
        """Images that are decoded next."""
        rows = len(z) if self._most is None else self._most
        if z.device.type == "cuda":
            each = self._bytes.get(tuple(z.shape[1:]))
            rows = 1 if each is None else min(rows, int(_SHARE * unused_memory(z.device) // each))
        return max(1, min(rows, len(z)))

    def _measured(self, rows: Tensor, return_dict: bool, options: dict[str, Any]) -> Any:
        shape = tuple(rows.shape[1:])
        if rows.device.type != "cuda" or shape in self._bytes:
            return self._decode(rows, return_dict, options)
        before, peak = torch.cuda.memory_allocated(rows.device), Peak(rows.device)
        result = self._decode(rows, return_dict, options)
        self._bytes[shape] = max(1, (peak.bytes - before) // len(rows))
        return result

    def _decode(self, rows: Tensor, return_dict: bool, options: dict[str, Any]) -> Any:
        decode = self._method()
        assert decode is not None, "the VAE is gone"
        return decode(rows, return_dict=return_dict, **options)

    def _retreat(self, rows: int) -> bool:
        """Ask for less memory from here on; whether that is possible."""
        if rows > 1:
            self._most = rows // 2
            return True
        if self.tiled:
            return False
        vae = self._vae()
        assert vae is not None
        self.tiled = vae.use_tiling = True
        self._bytes.clear()
        return True


def _joined(results: Sequence[Any]) -> Any:
    """What a VAE gives, of images that were decoded one after the other."""
    if len(results) == 1:
        return results[0]
    if isinstance(results[0], tuple):
        return (torch.cat([images for (images,) in results]),)
    return type(results[0])(sample=torch.cat([result.sample for result in results]))
