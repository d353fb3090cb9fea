"""PNG files whose text chunks say how they were made."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dbexp.core.errors import ConfigError
from dbexp.core.files import write_atomic


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
