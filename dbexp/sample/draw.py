"""Pictures of a list of prompts, drawn through the model's stock pipeline into an entry of the store.

The core that the prior and sample stages share. Every picture has a random generator of its own, seeded by what the
picture is (seed, stream, prompt, number) and not by where it stands, so neither the order of the prompts, nor the batch
size, nor an interruption changes its noise. Rounding is another matter: matrix products of another batch size may
differ in the last bits. So batches are cut from the list by configuration and the number of CPU cores alone, an
interrupted batch is drawn again as a whole, and the same command gives the same bytes on the same machine. Batch size
is no part of the store's key: pictures drawn at one batch size are found at another, where they would differ by
rounding only.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock, local
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dbexp.core import cores
from dbexp.core.errors import ConfigError
from dbexp.core.files import write_atomic
from dbexp.core.hashing import seed_of
from dbexp.core.progress import Bar, progress
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.models.lora_file import merged

log = logging.getLogger(__name__)

VERSION = 1
_SLUG_CHARACTERS = 60


@dataclass(frozen=True)
class Sampling:
    """What a set of pictures depends on besides the weights."""

    stream: str
    """Use of the pictures (prior, sample, class). Different streams never share noise, whatever their seeds."""
    seed: int
    """Seed of the set."""
    prompts: tuple[str, ...]
    """Filled in, each once."""
    images_per_prompt: int
    """Pictures of each prompt."""
    steps: int
    """Sampling steps."""
    guidance_scale: float
    """Classifier-free guidance; 1 or less: none."""
    sampler: str | None
    """One of the family's; None: the checkpoint's own."""
    resolution: int
    """Width and height in pixels."""
    negative_prompt: str = ""
    """What to steer away from."""


@dataclass(frozen=True)
class Shot:
    """One picture to draw."""

    prompt: str
    k: int
    """Number among the pictures of its prompt, from 0."""
    path: str
    """File name inside the entry."""


def image_seed(sampling: Sampling, shot: Shot) -> int:
    """Seed of one picture's generator.

    A hash, so that neighbouring seeds, prompts and numbers have unrelated noise, and one picture can be drawn without
    those before it.
    """
    return seed_of(sampling.seed, sampling.stream, shot.prompt, shot.k)


def shots(sampling: Sampling) -> tuple[Shot, ...]:
    """Every picture of a set, prompt by prompt.

    A set of one prompt in the streams prior and class lies flat (0000.png); samples have a folder for each prompt
    (03-a-sks-dog-on-a-cobblestone-street/0.png).
    """
    flat = sampling.stream != "sample"
    return tuple(
        Shot(prompt, k, f"{k:04}.png" if flat else f"{number:02}-{slug(prompt)}/{k}.png")
        for number, prompt in enumerate(sampling.prompts)
        for k in range(sampling.images_per_prompt)
    )


def slug(text: str) -> str:
    """A text as part of a file name: lower-case letters, digits and dashes, at most 60; `prompt` when none is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_SLUG_CHARACTERS].rstrip("-") or "prompt"


def draw(
    stage: str,
    sampling: Sampling,
    model: Model,
    store: Store,
    *,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    batch_size: int,
    description: str,
) -> tuple[Path, ...]:
    """The files of a set of pictures, drawn first where they are not in the store.

    Args:
        stage: stage of the store, and group of the `batch_size` that an error names.
        sampling: the set.
        model: the base model.
        store: where the entry is.
        lora: LoRA file that is merged into the model meanwhile; None: the base model.
        lora_scale: its strength.
        batch_size: pictures drawn at once; on a CPU its cores share them.
        description: for the progress bar.

    Returns:
        RGB PNG files in the order of `shots(sampling)`, each with its provenance in text chunks (`read_metadata`). A
        picture that came out with NaN is black.

    Raises:
        ConfigError: the device has not enough memory for `batch_size`.
    """
    inputs = _inputs(sampling, model, store, lora, lora_scale)
    wanted = shots(sampling)

    def make(folder: Path) -> None:
        _remove_strays(folder, wanted)
        at_once = cores.count(model.device)
        whole = [wanted[start : start + batch_size] for start in range(0, len(wanted), batch_size)]
        batches = [part for batch in whole for part in cores.split(batch, at_once)]
        missing = [batch for batch in batches if not all(_opens(folder / shot.path) for shot in batch)]
        done = len(wanted) - sum(map(len, missing))
        if done:
            log.info("%s: %d of %d pictures are there from an interrupted run", description, done, len(wanted))
        with merged(model, lora, lora_scale), progress(description, len(wanted), done=done) as bar:
            pipelines = Pipelines(model, sampling.sampler, at_once)
            provenance = {
                "model": model.name,
                "model_hash": model.identity,
                "dtype": inputs["dtype"],
                "lora": inputs["lora"] or "base",
                "lora_scale": lora_scale,
                "sampler": sampling.sampler or type(pipelines.own().scheduler).__name__,
                "stream": sampling.stream,
                "steps": sampling.steps,
                "guidance_scale": sampling.guidance_scale,
                "negative_prompt": sampling.negative_prompt,
            }

            def work(batch: Sequence[Shot], check: cores.Check) -> NDArray[np.uint8]:
                return _sample(pipelines.own(), batch, sampling, bar, check)

            try:
                with closing(cores.side_by_side(work, missing, at_once)) as drawn:
                    for batch, pictures in drawn:
                        for shot, pixels in zip(batch, pictures, strict=True):
                            own = {"prompt": shot.prompt, "k": shot.k, "seed": image_seed(sampling, shot)}
                            _save(pixels, folder / shot.path, {**own, **provenance})
                            bar.advance(step=None)
            except torch.OutOfMemoryError:
                raise ConfigError(_memory_message(stage, batch_size, sampling.resolution)) from None

    folder = store.get(stage, inputs, make)
    return tuple(folder / shot.path for shot in wanted)


def find(stage: str, sampling: Sampling, model: Model, store: Store) -> tuple[Path, ...] | None:
    """The files of a set of pictures of the base model, if `draw` would find them all; None if it would draw."""
    folder = store.find(stage, _inputs(sampling, model, store, None, 1.0))
    return None if folder is None else tuple(folder / shot.path for shot in shots(sampling))


def _inputs(sampling: Sampling, model: Model, store: Store, lora: Path | None, lora_scale: float) -> dict[str, Any]:
    """What the pictures depend on: the key of their store entry."""
    return {
        "version": VERSION,
        "model": model.identity,
        "dtype": str(model.dtype).removeprefix("torch."),
        "lora": None if lora is None else store.file_hash(lora),
        "lora_scale": None if lora is None else lora_scale,
        **asdict(sampling),
    }


def read_metadata(path: Path) -> dict[str, str]:
    """The text chunks of a picture: prompt, k, seed, model, model_hash, dtype, lora (sha256 of the file, or base),
    lora_scale, sampler, stream, steps, guidance_scale, negative_prompt.

    Raises:
        ConfigError: the file is no readable PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()  # text may stand behind the pixels
            return {name: str(text) for name, text in image.info.items() if isinstance(text, str)}
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"{path}: cannot be read as PNG ({error})") from None


class Pipelines:
    """A pipeline for each thread, around the same networks: a sampler counts its steps, so it cannot be shared.

    Args:
        model: gives pipelines.
        sampler: of all of them.
        threads: how many will ask.
        task: of all of them, as `Model.pipeline` has it.
    """

    def __init__(self, model: Model, sampler: str | None, threads: int, task: str = "text") -> None:
        self._model, self._sampler, self._threads, self._task = model, sampler, threads, task
        self._local, self._lock = local(), Lock()

    def own(self) -> Any:
        """The pipeline of the calling thread."""
        if not hasattr(self._local, "pipe"):
            with self._lock:  # the first one loads the networks
                self._local.pipe = self._model.pipeline(self._sampler, self._task)
            if self._threads == 1:
                return self._local.pipe
            encode = self._local.pipe.encode_prompt

            def encode_prompt(*arguments: Any, **named: Any) -> Any:
                with self._lock:  # a fast tokenizer refuses to work for two at a time ("Already borrowed")
                    return encode(*arguments, **named)

            self._local.pipe.encode_prompt = encode_prompt
        return self._local.pipe


def _sample(pipe: Any, batch: Sequence[Shot], sampling: Sampling, bar: Bar, check: cores.Check) -> NDArray[np.uint8]:
    """The pixels of a batch, uint8 [B, H, W, 3]."""

    def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        check()
        bar.advance(0, step=f"{step + 1}/{pipe.num_timesteps}")
        return {}

    images = pipe(
        prompt=[shot.prompt for shot in batch],
        negative_prompt=[sampling.negative_prompt] * len(batch),
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        height=sampling.resolution,
        width=sampling.resolution,
        # on the CPU whatever the device: noise is then the same on every machine
        generator=[torch.Generator("cpu").manual_seed(image_seed(sampling, shot)) for shot in batch],
        output_type="np",
        callback_on_step_end=after_step,
    ).images
    return pixels(images, [f"{shot.prompt!r}, picture {shot.k}" for shot in batch])


def pixels(images: NDArray[np.floating[Any]], names: Sequence[str]) -> NDArray[np.uint8]:
    """What a pipeline gives, [n, h, w, 3] in [0, 1], as uint8.

    A picture of NaN turns black, with a warning that names it.
    """
    broken = np.isnan(images).any(axis=(1, 2, 3))
    for name in (name for name, nan in zip(names, broken, strict=True) if nan):
        log.warning("%s: came out as NaN and is kept as a black picture", name)
    whole = np.where(broken[:, None, None, None], 0.0, images)
    rounded: NDArray[np.uint8] = (whole * 255).round().astype(np.uint8)
    return rounded


def _save(pixels: NDArray[np.uint8], path: Path, metadata: dict[str, Any]) -> None:
    chunks = PngInfo()
    for name, value in metadata.items():
        chunks.add_text(name, str(value))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=chunks)
    write_atomic(path, buffer.getvalue())


def _opens(path: Path) -> bool:
    """Whether a picture is there as a whole: a file that was cut off opens, but does not load."""
    with suppress(OSError, SyntaxError), Image.open(path, formats=["PNG"]) as image:
        image.load()
        return True
    return False


def _remove_strays(folder: Path, wanted: Sequence[Shot]) -> None:
    """Delete what a killed process left besides pictures (half-written files), or it would become part of the entry."""
    expected = {shot.path for shot in wanted}
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in expected:
            path.unlink()


def _memory_message(stage: str, batch_size: int, resolution: int) -> str:
    way_out = f"try {stage}.batch_size={batch_size // 2}" if batch_size > 1 else "lower the resolution or the precision"
    return (
        f"{stage}.batch_size={batch_size}: the device has not enough memory for that many pictures of "
        f"{resolution} x {resolution} pixels at once; {way_out} (what is drawn so far is kept)"
    )
