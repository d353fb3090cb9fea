"""Draws the pictures of a grid that are not there yet, through the model's stock pipelines.

Every picture has a random generator of its own, so its noise depends on its seed alone: not on the batch, nor on what
is drawn before it. What a picture was made with stands in its text chunks, and that is how a call that goes on where
another one stopped knows its pictures.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dbexp.core import cores
from dbexp.core.errors import ConfigError
from dbexp.core.files import write_atomic
from dbexp.core.progress import Bar
from dbexp.generate.grid import Drawing, GridColumn, Shot, paste
from dbexp.models import Model, inpaint
from dbexp.models.lora_file import merged
from dbexp.sample.draw import Pipelines, pixels, read_metadata

log = logging.getLogger(__name__)


def draw_column(column: GridColumn, drawn: Drawing, model: Model, folder: Path, bar: Bar) -> int:
    """Draw what is missing of a column.

    Args:
        column: of the grid.
        drawn: how its pictures are sampled.
        model: the base; must be the column's.
        folder: of the grid.
        bar: is advanced by the number of pictures, those that were there included.

    Returns:
        How many pictures were there already.

    Raises:
        ConfigError: the model cannot do what is asked for, the LoRA does not fit it, or memory does not suffice.
    """
    if model.needs_mask and drawn.task != "inpaint":
        raise ConfigError(f"model={model.name}: is an inpainting checkpoint; give it init_image=FILE and mask=FILE")
    expected = {shot.path: _metadata(column, shot, drawn, model) for shot in column.shots}
    at_once = cores.count(model.device)
    whole = [column.shots[at : at + drawn.batch_size] for at in range(0, len(column.shots), drawn.batch_size)]
    batches = [part for batch in whole for part in cores.split(batch, at_once)]
    # an interrupted batch is drawn again as a whole: in a smaller one, pictures would differ by rounding
    missing = [
        batch for batch in batches if not all(_is_there(folder / shot.path, expected[shot.path]) for shot in batch)
    ]
    there = len(column.shots) - sum(map(len, missing))
    bar.advance(there, step=None)
    if not missing:
        return there
    lora = None if column.scale is None else column.run.lora
    with merged(model, lora, 1.0 if column.scale is None else column.scale):
        keeps = drawn.task == "inpaint" and inpaint.is_needed(model.pipeline(drawn.sampler, drawn.task))
        pipelines = Pipelines(model, drawn.sampler, at_once, "image" if keeps else drawn.task)

        def work(batch: Sequence[Shot], check: cores.Check) -> NDArray[np.uint8]:
            pipe = pipelines.own()
            if not keeps:
                return _sample(pipe, batch, drawn, bar, check, None)
            assert drawn.init is not None and drawn.mask is not None
            keep = inpaint.keeping(pipe, drawn.init, drawn.mask, [shot.seed for shot in batch])
            return _sample(pipe, batch, drawn, bar, check, keep)

        try:
            with closing(cores.side_by_side(work, missing, at_once)) as pictures:
                for batch, sampled in pictures:
                    for shot, pixels in zip(batch, sampled, strict=True):
                        _save(paste(pixels, drawn), folder / shot.path, expected[shot.path])
                        bar.advance(step=None)
        except torch.OutOfMemoryError:
            raise ConfigError(_memory_message(drawn)) from None
    return there


def _metadata(column: GridColumn, shot: Shot, drawn: Drawing, model: Model) -> dict[str, str]:
    """Everything that a picture depends on, by name."""
    told: dict[str, Any] = {
        "prompt": shot.prompt,
        "seed": shot.seed,
        "run": column.run.name,
        "lora": "base" if column.scale is None else column.run.lora_hash,
        "lora_scale": 0 if column.scale is None else column.scale,
        "model": model.name,
        "model_hash": model.identity,
        "dtype": str(model.dtype).removeprefix("torch."),
        "task": drawn.task,
        "sampler": drawn.sampler or "the checkpoint's own",
        "steps": drawn.steps,
        "guidance_scale": drawn.guidance_scale,
        "negative_prompt": drawn.negative_prompt,
        "width": drawn.width,
        "height": drawn.height,
        **(drawn.sources or {}),
    }
    if drawn.task != "text":
        told["strength"] = drawn.strength
    if drawn.task == "inpaint":
        told["paste"] = drawn.paste
    return {name: str(value) for name, value in told.items()}


def _is_there(path: Path, expected: dict[str, str]) -> bool:
    """Whether a picture is there as a whole, and is the one that is meant."""
    try:
        return path.is_file() and read_metadata(path) == expected
    except ConfigError:
        return False


def _sample(
    pipe: Any, batch: Sequence[Shot], drawn: Drawing, bar: Bar, check: cores.Check, keep: inpaint.Keep | None
) -> NDArray[np.uint8]:
    """The pixels of a batch, uint8 [B, H, W, 3]; with `keep`, inpainted by a pipeline that draws from a picture."""

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        check()
        bar.advance(0, step=f"{step + 1}/{pipe.num_timesteps}")
        return {} if keep is None else {"latents": keep(pipe, step, tensors["latents"])}

    task = drawn.task if keep is None else "image"
    own: dict[str, Any] = {}
    if task != "image":
        own |= {"height": drawn.height, "width": drawn.width}
    if drawn.task != "text":
        # as many as prompts, so that each is encoded with its own generator
        own |= {"image": [drawn.init] * len(batch), "strength": drawn.strength}
    if task == "inpaint":
        own["mask_image"] = [drawn.mask] * len(batch)
    images = pipe(
        prompt=[shot.prompt for shot in batch],
        negative_prompt=[drawn.negative_prompt] * len(batch),
        num_inference_steps=drawn.steps,
        guidance_scale=drawn.guidance_scale,
        # on the CPU whatever the device: noise is then the same on every machine
        generator=[torch.Generator("cpu").manual_seed(shot.seed) for shot in batch],
        output_type="np",
        callback_on_step_end=after_step,
        **own,
    ).images
    return pixels(images, [f"{shot.prompt!r}, seed {shot.seed}" for shot in batch])


def _save(pixels: NDArray[np.uint8], path: Path, metadata: dict[str, str]) -> None:
    chunks = PngInfo()
    for name, value in metadata.items():
        chunks.add_text(name, value)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=chunks)
    write_atomic(path, buffer.getvalue())


def _memory_message(drawn: Drawing) -> str:
    way_out = (
        f"try batch_size={drawn.batch_size // 2}"
        if drawn.batch_size > 1
        else "lower width and height, or the precision"
    )
    return (
        f"batch_size={drawn.batch_size}: the device has not enough memory for that many pictures of {drawn.width} x "
        f"{drawn.height} pixels at once; {way_out}, and give folder=... to keep what is drawn so far"
    )
