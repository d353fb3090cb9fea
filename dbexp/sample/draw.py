"""The drawing engine: shots in, PNG files out, through the model's stock pipeline. Prior, sample and generate use it.

Every image has a random generator of its own, seeded by the shot and not by where it stands, so neither the order of
the prompts, nor the batch size, nor an interruption changes its noise. Rounding is another matter: matrix products of
another batch size may differ in the last bits. So batches are cut from the list by configuration and the number of CPU
cores alone, an interrupted batch is drawn again as a whole, and on a CPU the same command gives the same bytes on the
same machine. On a GPU it does so up to rounding: libraries choose their kernels by what memory they find, and batches
grow where memory has room. A batch that memory does not suffice for is drawn in halves, on any device.

Where the denoiser is compiled, batches are cut for few different sizes (`dbexp.sample.sizes`) and drawn one after the
other, also on a CPU; images are then what they are without, to rounding.

Files are written by threads while the next batch is drawn; all that was drawn is on the disk whatever ends the drawing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dbexp.core import cores
from dbexp.core.cost import Peak
from dbexp.core.device import is_out_of_memory, release_memory, unused_memory
from dbexp.core.errors import ConfigError, byte_size
from dbexp.core.progress import Bar
from dbexp.models import Batch, Model
from dbexp.models.beside import adapted
from dbexp.models.compiled import compiled, uncompiled
from dbexp.models.inpaint import MASK_THRESHOLD
from dbexp.sample import png
from dbexp.sample.shots import Shot
from dbexp.sample.sizes import Sizes
from dbexp.sample.text import Texts, encode

log = logging.getLogger(__name__)

Drawn: TypeAlias = tuple[Sequence[Shot], NDArray[np.uint8]]
"""A batch, and its pixels [B, H, W, 3]."""
Work: TypeAlias = Callable[..., NDArray[np.uint8]]
"""Draws a batch."""

_MEMORY_SHARE = 0.9
"""Part of a GPU's free memory that a batch may take."""


@dataclass(frozen=True)
class Drawing:
    """How images are drawn, whatever they show."""

    steps: int
    guidance_scale: float
    sampler: str | None
    """None: the checkpoint's own."""
    negative_prompt: str
    width: int
    height: int
    batch_size: int
    """Images drawn at once; on a CPU its cores share them."""
    grows: bool = False
    """Whether on a GPU more are drawn at once after the first batch, where memory has room for them."""
    compile: str = "none"
    """What of the denoiser is compiled, see `dbexp.models.compiled`."""
    lora: Path | None = None
    """LoRA file that the model draws with; None: the base model."""
    lora_scale: float = 1.0
    """Its strength."""
    init: Image.Image | None = None
    """Image to start from, RGB, width x height; None: noise alone."""
    strength: float = 1.0
    """Share of the steps that `init` goes through."""
    mask: Image.Image | None = None
    """Black (keep) and white (draw), mode L, width x height; None: all of `init` is drawn anew."""
    ahead: tuple[str, ...] = ()
    """Prompts that will be drawn later, with the same negative prompt and LoRA."""
    paste: bool = True
    """With `mask`: put the pixels of `init` back where it is black."""

    @property
    def task(self) -> str:
        """What the images start from, as `Model.pipeline` has it."""
        if self.init is None:
            return "text"
        return "image" if self.mask is None else "inpaint"


class Engine:
    """Draws with one base model in one way.

    Args:
        model: the base.
        drawing: how.
    """

    def __init__(self, model: Model, drawing: Drawing) -> None:
        self.model, self.drawing = model, drawing
        self._threads = cores.count(model.device) if drawing.compile == "none" else 1
        self._local, self._lock = local(), Lock()
        self._sizes = Sizes(model, drawing.compile, drawing.batch_size, drawing.grows, drawing.width, drawing.height)

    @property
    def sampler(self) -> str:
        """Name of the sampler; the class name of the checkpoint's own."""
        return self.drawing.sampler or self.model.sampler

    def missing(self, shots: Sequence[Shot], folder: Path, metadata: Mapping[str, object]) -> list[Sequence[Shot]]:
        """The batches in which an image is not there, is cut short, or was made in another way.

        Args:
            shots: of the whole set.
            folder: of the set.
            metadata: what the files say besides `Shot.metadata`.
        """
        batches = [part for batch in self.cut(shots) for part in cores.split(batch, self._threads)]
        return [
            batch
            for batch in batches
            if not all(png.holds(folder / shot.path, {**shot.metadata, **metadata}) for shot in batch)
        ]

    def cut(self, shots: Sequence[Shot]) -> list[Sequence[Shot]]:
        """The batches of a set as they are drawn one after the other."""
        return self._sizes.cut(shots)

    def draw(
        self, batches: Sequence[Sequence[Shot]], folder: Path, metadata: Mapping[str, object], bar: Bar, setting: str
    ) -> None:
        """Draw batches into RGB PNG files. An image that came out with NaN is black.

        Args:
            batches: from `missing`.
            folder: of the set.
            metadata: text chunks of every file besides `Shot.metadata`.
            bar: is advanced image by image.
            setting: name of the batch size among the user's settings.

        Raises:
            ConfigError: the device has not enough memory for a single image, or the LoRA does not fit the model.
        """
        if not batches:
            return
        drawing, sizes = self.drawing, self._sizes

        def work(batch: Sequence[Shot], check: cores.Check = lambda: None) -> NDArray[np.uint8]:
            parts = cores.split(batch, -(-len(batch) // sizes.most))
            if len(parts) == 1:
                seated = sizes.seated(batch)
                self.begin(seated)
                try:
                    return sample_batch(self._pipeline(), seated, texts, drawing, bar, check)[: len(batch)]
                except Exception as error:
                    if len(seated) == 1 or not is_out_of_memory(error):
                        raise
                # beyond the handler nothing refers to what the batch had computed
                self._halve(len(seated), setting)
                parts = cores.split(batch, 2)
            return np.concatenate([work(part, check) for part in parts])

        try:
            texts = self.encode([shot.prompt for batch in batches for shot in batch])
            with (
                png.Writer() as writer,
                self.adapted(),
                compiled(self.model, "sample.compile", drawing.compile),
                closing(self._side_by_side(work, batches)) as finished,
            ):
                for batch, images in finished:
                    for shot, pixels in zip(batch, images, strict=True):
                        writer.save(paste(pixels, drawing), folder / shot.path, {**shot.metadata, **metadata})
                        bar.advance(step=None)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ConfigError(_memory_message(setting, drawing)) from None

    def _side_by_side(self, work: Work, batches: Sequence[Sequence[Shot]]) -> Generator[Drawn, None, None]:
        """Every batch with its pixels. Where a first batch shows that memory has room for more, the others are gathered
        anew."""
        device, sizes = self.model.device, self._sizes
        if not sizes.measures or len(batches) < 2:
            sizes.settle()
            yield from cores.side_by_side(work, batches, self._threads)
            return
        before, peak = torch.cuda.memory_allocated(device), Peak(device)
        with nullcontext() if self.drawing.compile == "none" else uncompiled():
            first = work(batches[0])
        yield batches[0], first
        each = max(1, (peak.bytes - before) // min(len(batches[0]), sizes.most))
        room = int(_MEMORY_SHARE * unused_memory(device) // each)
        sizes.grow(room)
        log.info("pictures at once: %d, of %s each and %s free", sizes.most, byte_size(each), byte_size(room * each))
        rest = [shot for batch in batches[1:] for shot in batch]
        again = sizes.regroup(rest, len(batches[0]) + len(rest))
        sizes.settle()
        for batch in again:
            yield batch, work(batch)

    def adapted(self) -> AbstractContextManager[None]:
        """Inside the block the denoiser draws what is asked for."""
        return adapted(self.model, self.drawing.lora, self.drawing.lora_scale)

    def begin(self, batch: Sequence[Shot]) -> None:
        """The calling thread draws a batch next."""

    def _halve(self, size: int, setting: str) -> None:
        """From here on no more than half of a batch, for which memory did not suffice, is drawn at once."""
        release_memory()
        with self._lock:
            if half := self._sizes.halve(size):
                log.warning(
                    "memory did not suffice for %d pictures at once: going on with %d (%s)", size, half, setting
                )

    def encode(self, prompts: Sequence[str]) -> Texts:
        """What is read for images of these prompts."""
        drawing = self.drawing
        negative = drawing.negative_prompt if self.model.guided(drawing.guidance_scale) else None
        return encode(self.model, prompts, negative, drawing.lora, drawing.lora_scale, drawing.ahead)

    def _pipeline(self) -> Any:
        """The pipeline of the calling thread, around the same networks: a sampler counts its steps, so it cannot be
        shared."""
        if not hasattr(self._local, "pipe"):
            with self._lock:  # the first one loads the networks
                self._local.pipe = self.model.pipeline(self.drawing.sampler, self.drawing.task)
        return self._local.pipe


def sample_batch(
    pipe: Any, shots: Sequence[Shot], texts: Texts, drawing: Drawing, bar: Bar, check: cores.Check
) -> NDArray[np.uint8]:
    """The pixels of a batch, uint8 [B, H, W, 3]."""

    def after_step(step: int, steps: int) -> None:
        check()
        bar.advance(0, step=f"{step}/{steps}")

    text, negative = texts.of(shots)
    batch = Batch(
        text=text,
        negative=negative,
        seeds=tuple(shot.seed for shot in shots),
        steps=drawing.steps,
        guidance=drawing.guidance_scale,
        width=drawing.width,
        height=drawing.height,
        image=drawing.init,
        mask=drawing.mask,
        strength=drawing.strength,
        after_step=after_step,
    )
    images = texts.model.draw(pipe, batch)
    broken = np.isnan(images).any(axis=(1, 2, 3))
    for shot in (shot for shot, nan in zip(shots, broken, strict=True) if nan):
        log.warning("%r, %s: came out as NaN and is kept as a black picture", shot.prompt, shot.path)
    whole = np.where(broken[:, None, None, None], 0.0, images)
    pixels: NDArray[np.uint8] = (whole * 255).round().astype(np.uint8)
    return pixels


def paste(pixels: NDArray[np.uint8], drawing: Drawing) -> NDArray[np.uint8]:
    """Put the pixels that a mask keeps back into an image [H, W, 3]; without a mask it stays as it is."""
    if drawing.mask is None or drawing.init is None or not drawing.paste:
        return pixels
    dark = np.asarray(drawing.mask)[..., None] < MASK_THRESHOLD
    return np.where(dark, np.asarray(drawing.init), pixels)


def _memory_message(setting: str, drawing: Drawing) -> str:
    return (
        f"{setting}={drawing.batch_size}: the device has not enough memory for one picture of {drawing.width} x "
        f"{drawing.height} pixels; lower the resolution or the precision (what is drawn so far is kept)"
    )
