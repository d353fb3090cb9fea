"""PNG files whose text chunks say how they were made."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dbexp.core.errors import ConfigError
from dbexp.core.files import write_atomic

_THREADS = 4
"""Of `Writer`: zlib and the disk leave Python to others. One compresses about ten images of 512 x 512 a second."""
_WAITING_BYTES = 1 << 28
"""Of pixels that may wait to be written."""


class Writer:
    """Writes files while the next images are drawn. Whatever was handed to it is on the disk when its block has ended,
    also where an error or Ctrl-C ended it.

    Args:
        most_bytes: of pixels that may wait to be written; whoever hands over more waits.

    Raises:
        OSError: a file could not be written; at the next call of `save`, or at the end of the block.
    """

    def __init__(self, most_bytes: int = _WAITING_BYTES) -> None:
        self._most_bytes = most_bytes
        self._threads = ThreadPoolExecutor(_THREADS, "dbexp-png")
        self._pending: deque[Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Images that are not known to be on the disk."""
        return len(self._pending)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown()
        if kind is None:
            self._collect(0)

    def save(self, pixels: NDArray[np.uint8], path: Path, metadata: Mapping[str, object]) -> None:
        """As `save` below, before long."""
        self._collect(max(_THREADS, self._most_bytes // pixels.nbytes))
        self._pending.append(self._threads.submit(save, pixels, path, metadata))

    def _collect(self, most: int) -> None:
        """Wait until no more than so many files are left to write, and tell what went wrong with the others."""
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.popleft().result()


def save(pixels: NDArray[np.uint8], path: Path, metadata: Mapping[str, object]) -> None:
    """Write pixels [H, W, 3], atomically, with a text chunk for each name."""
    chunks = PngInfo()
    for name, value in metadata.items():
        chunks.add_text(name, str(value))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=chunks)
    write_atomic(path, buffer.getvalue())


def read_metadata(path: Path) -> dict[str, str]:
    """The text chunks of a file.

    Every drawn image has prompt, seed, model, model_hash, dtype, lora (sha256 of the file, or base), lora_scale,
    sampler, steps, guidance_scale and negative_prompt; those of a run also k and stream, those of `dbexp-generate` also
    run, task, width, height, and what they start from.

    Raises:
        ConfigError: the file is no PNG, or is cut short.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # text may stand behind the pixels; and a file that was cut short opens, but does not load
            return {name: str(text) for name, text in image.info.items() if isinstance(text, str)}
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"{path}: cannot be read as PNG ({error})") from None


def holds(path: Path, metadata: Mapping[str, object]) -> bool:
    """Whether a file is there as a whole and says exactly this of itself."""
    try:
        return path.is_file() and read_metadata(path) == {name: str(value) for name, value in metadata.items()}
    except ConfigError:
        return False
