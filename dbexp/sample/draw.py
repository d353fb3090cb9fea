"""The drawing engine: shots in, PNG files out, through the model's stock pipeline. Prior, sample and generate use it.

Every image has a random generator of its own, seeded by the shot and not by where it stands, so neither the order of
the prompts, nor the batch size, nor an interruption changes its noise. Rounding is another matter: matrix products of
another batch size may differ in the last bits. So batches are cut from the list by configuration and the number of CPU
cores alone, an interrupted batch is drawn again as a whole, and the same command gives the same bytes on the same
machine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dbexp.core import cores
from dbexp.core.errors import ConfigError
from dbexp.core.progress import Bar
from dbexp.models import Model, inpaint
from dbexp.models.lora_file import merged
from dbexp.sample import png
from dbexp.sample.shots import Shot

log = logging.getLogger(__name__)


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
    lora: Path | None = None
    """LoRA file that is merged into the model meanwhile; None: the base model."""
    lora_scale: float = 1.0
    """Its strength."""
    init: Image.Image | None = None
    """Image to start from, RGB, width x height; None: noise alone."""
    strength: float = 1.0
    """Share of the steps that `init` goes through."""
    mask: Image.Image | None = None
    """Black (keep) and white (draw), mode L, width x height; None: all of `init` is drawn anew."""
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
        self._threads = cores.count(model.device)
        self._local, self._lock = local(), Lock()
        self._keeps = False  # what the mask keeps is put back by us, not by the pipeline

    @property
    def sampler(self) -> str:
        """Name of the sampler; the class name of the checkpoint's own."""
        return self.drawing.sampler or type(self._pipeline().scheduler).__name__

    def missing(self, shots: Sequence[Shot], folder: Path, metadata: Mapping[str, object]) -> list[Sequence[Shot]]:
        """The batches in which an image is not there, is cut short, or was made in another way.

        Args:
            shots: of the whole set.
            folder: of the set.
            metadata: what the files say besides `Shot.metadata`.
        """
        size = self.drawing.batch_size
        whole = [shots[start : start + size] for start in range(0, len(shots), size)]
        batches = [part for batch in whole for part in cores.split(batch, self._threads)]
        return [
            batch
            for batch in batches
            if not all(png.holds(folder / shot.path, {**shot.metadata, **metadata}) for shot in batch)
        ]

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
            ConfigError: the device has not enough memory for the batch size, or the LoRA does not fit the model.
        """
        if not batches:
            return
        drawing = self.drawing

        def work(batch: Sequence[Shot], check: cores.Check) -> NDArray[np.uint8]:
            pipe, keep = self._pipeline(), None
            if self._keeps:
                assert drawing.init is not None and drawing.mask is not None
                keep = inpaint.keeping(pipe, drawing.init, drawing.mask, [shot.seed for shot in batch])
            return sample_batch(pipe, batch, drawing, bar, check, keep)

        with merged(self.model, drawing.lora, drawing.lora_scale):
            try:
                with closing(cores.side_by_side(work, batches, self._threads)) as finished:
                    for batch, images in finished:
                        for shot, pixels in zip(batch, images, strict=True):
                            png.save(paste(pixels, drawing), folder / shot.path, {**shot.metadata, **metadata})
                            bar.advance(step=None)
            except torch.OutOfMemoryError:
                raise ConfigError(_memory_message(setting, drawing)) from None

    def _pipeline(self) -> Any:
        """The pipeline of the calling thread, around the same networks: a sampler counts its steps, so it cannot be
        shared."""
        if not hasattr(self._local, "pipe"):
            with self._lock:  # the first one loads the networks
                self._local.pipe = self._open()
        return self._local.pipe

    def _open(self) -> Any:
        task = self.drawing.task
        pipe = self.model.pipeline(self.drawing.sampler, task)
        self._keeps = task == "inpaint" and inpaint.is_needed(pipe)
        if self._keeps:
            pipe = self.model.pipeline(self.drawing.sampler, "image")
        if self._threads > 1:
            encode = pipe.encode_prompt

            def encode_prompt(*arguments: Any, **keywords: Any) -> Any:
                with self._lock:  # a fast tokenizer refuses to work for two at a time ("Already borrowed")
                    return encode(*arguments, **keywords)

            pipe.encode_prompt = encode_prompt
        return pipe


def sample_batch(
    pipe: Any, batch: Sequence[Shot], drawing: Drawing, bar: Bar, check: cores.Check, keep: inpaint.Keep | None = None
) -> NDArray[np.uint8]:
    """The pixels of a batch, uint8 [B, H, W, 3]; with `keep`, inpainted by a pipeline that draws from an image."""

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        check()
        bar.advance(0, step=f"{step + 1}/{pipe.num_timesteps}")
        return {} if keep is None else {"latents": keep(pipe, step, tensors["latents"])}

    task = drawing.task if keep is None else "image"
    more: dict[str, Any] = {}
    if task != "image":
        more |= {"height": drawing.height, "width": drawing.width}
    if task != "text":
        # as many as prompts, so that each is encoded with its own generator
        more |= {"image": [drawing.init] * len(batch), "strength": drawing.strength}
    if task == "inpaint":
        more["mask_image"] = [drawing.mask] * len(batch)
    images = pipe(
        prompt=[shot.prompt for shot in batch],
        negative_prompt=[drawing.negative_prompt] * len(batch),
        num_inference_steps=drawing.steps,
        guidance_scale=drawing.guidance_scale,
        # on the CPU whatever the device: noise is then the same on every machine
        generator=[torch.Generator("cpu").manual_seed(shot.seed) for shot in batch],
        output_type="np",
        callback_on_step_end=after_step,
        **more,
    ).images
    broken = np.isnan(images).any(axis=(1, 2, 3))
    for shot in (shot for shot, nan in zip(batch, broken, strict=True) if nan):
        log.warning("%r, %s: came out as NaN and is kept as a black picture", shot.prompt, shot.path)
    whole = np.where(broken[:, None, None, None], 0.0, images)
    pixels: NDArray[np.uint8] = (whole * 255).round().astype(np.uint8)
    return pixels


def paste(pixels: NDArray[np.uint8], drawing: Drawing) -> NDArray[np.uint8]:
    """Put the pixels that a mask keeps back into an image [H, W, 3]; without a mask it stays as it is."""
    if drawing.mask is None or drawing.init is None or not drawing.paste:
        return pixels
    dark = np.asarray(drawing.mask)[..., None] < inpaint.MASK_THRESHOLD
    return np.where(dark, np.asarray(drawing.init), pixels)


def _memory_message(setting: str, drawing: Drawing) -> str:
    size, half = drawing.batch_size, drawing.batch_size // 2
    remedy = f"try {setting}={half}" if half else "lower the resolution or the precision"
    return (
        f"{setting}={size}: the device has not enough memory for that many pictures of {drawing.width} x "
        f"{drawing.height} pixels at once; {remedy} (what is drawn so far is kept)"
    )
