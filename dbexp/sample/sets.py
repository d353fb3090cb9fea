"""Sets of images in the store: drawn once, found ever after, and continued where they were interrupted.

Neither batch size nor what is compiled is part of the key: images drawn in one way are found in another, where they
would differ by rounding only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dbexp.config.fields import keyed
from dbexp.core.cost import Cost, Meter
from dbexp.core.files import write_atomic
from dbexp.core.progress import progress
from dbexp.core.rates import Rates, device_name
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample.draw import Drawing, Engine
from dbexp.sample.shots import Sampling, Shot, shots

log = logging.getLogger(__name__)

VERSION = 1
COST = "cost.json"
"""What drawing the set took."""


def draw_set(
    stage: str,
    sampling: Sampling,
    model: Model,
    store: Store,
    *,
    lora: Path | None = None,
    lora_scale: float = 1.0,
    batch_size: int,
    grows: bool = False,
    compile: str = "none",
    ahead: tuple[str, ...] = (),
    description: str,
) -> tuple[Path, ...]:
    """The files of a set of images, drawn first where they are not in the store.

    Args:
        stage: stage of the store, and group of the `batch_size` that an error names.
        sampling: the set.
        model: the base model.
        store: where the entry is.
        lora, lora_scale, batch_size, grows, compile, ahead: see `Drawing`.
        description: for the progress bar.

    Returns:
        RGB PNG files in the order of `shots(sampling)`, with their provenance (`png.read_metadata`).

    Raises:
        ConfigError: see `Engine.draw`.
    """
    inputs = inputs_of(sampling, model, store, lora, lora_scale)
    every = shots(sampling)
    drawing = drawing_of(sampling, batch_size, grows, compile)
    drawing = replace(drawing, lora=lora, lora_scale=lora_scale, ahead=ahead)

    def make(folder: Path) -> None:
        remove_strays(folder, every)
        engine = Engine(model, drawing)
        metadata = metadata_of(sampling, model, inputs, lora_scale, engine.sampler)
        batches = engine.missing(every, folder, metadata)
        count = len(every) - sum(map(len, batches))
        if count:
            log.info("%s: %d of %d pictures are there from an interrupted run", description, count, len(every))
        meter = Meter(model.device)
        with progress(description, len(every), done=count) as bar:
            engine.draw(batches, folder, metadata, bar, f"{stage}.batch_size")
        note(folder, [shot for batch in batches for shot in batch], sampling, model, store, meter.cost(), compile)

    folder = store.get(stage, inputs, make)
    return tuple(folder / shot.path for shot in every)


def drawing_of(sampling: Sampling, batch_size: int, grows: bool, compile: str) -> Drawing:
    """How the base model draws a set."""
    return Drawing(
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        sampler=sampling.sampler,
        negative_prompt=sampling.negative_prompt,
        width=sampling.resolution,
        height=sampling.resolution,
        batch_size=batch_size,
        grows=grows,
        compile=compile,
    )


def metadata_of(
    sampling: Sampling, model: Model, inputs: Mapping[str, Any], lora_scale: float, sampler: str
) -> dict[str, object]:
    """What every file of a set says besides `Shot.metadata`.

    Args:
        inputs: see `inputs_of`.
        sampler: its name.
    """
    return {
        "model": model.name,
        "model_hash": model.identity,
        "dtype": inputs["dtype"],
        "lora": inputs["lora"] or "base",
        "lora_scale": lora_scale,
        "sampler": sampler,
        "stream": sampling.stream,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "negative_prompt": sampling.negative_prompt,
    }


def note(
    folder: Path, new: Sequence[Shot], sampling: Sampling, model: Model, store: Store, cost: Cost, compile: str
) -> None:
    """Note what drawing a set took, beside it and for later sweeps.

    Args:
        new: what was drawn of it.
        compile: see `Drawing`.
    """
    write_atomic(folder / COST, json.dumps({"images": len(new), **cost.plain()}, indent=1))
    if new:
        rates = Rates(store.root)
        work = {**work_of(sampling, model, compile), "device": device_name(model.device)}
        rates.note(work, len(new) * sampling.steps, cost.seconds)
        size = sum((folder / shot.path).stat().st_size for shot in new)
        rates.note(files_of(model), len(new) * sampling.resolution**2, size)


def find_set(stage: str, sampling: Sampling, model: Model, store: Store) -> tuple[Path, ...] | None:
    """The files of a set of images of the base model, if `draw_set` would find them all; None if it would draw."""
    folder = store.find(stage, inputs_of(sampling, model, store, None, 1.0))
    return None if folder is None else tuple(folder / shot.path for shot in shots(sampling))


def is_there(stage: str, sampling: Sampling, model: Model, store: Store, lora: Path | None, lora_scale: float) -> bool:
    """Whether `draw_set` would draw nothing."""
    return store.find(stage, inputs_of(sampling, model, store, lora, lora_scale)) is not None


def work_of(sampling: Sampling, model: Model, compile: str) -> dict[str, Any]:
    """The kind of work that drawing a set is, as `Rates` has it: seconds for each sampling step of an image."""
    return {
        "work": "draw",
        "model": model.identity,
        "dtype": str(model.dtype),
        "resolution": sampling.resolution,
        "guided": model.guided(sampling.guidance_scale),
        **({"compile": compile} if compile != "none" else {}),
    }


def files_of(model: Model) -> dict[str, Any]:
    """The kind of files that images are, as `Rates` has it: bytes for each pixel."""
    return {"bytes": "png", "model": model.identity}


def cost_of(stage: str, sampling: Sampling, model: Model, store: Store, lora: Path | None, lora_scale: float) -> Any:
    """What drawing a set took, and how many of its images the seconds cover: fewer than all where it was interrupted.

    None where it is not on record.
    """
    folder = store.find(stage, inputs_of(sampling, model, store, lora, lora_scale))
    path = folder / COST if folder else None
    return json.loads(path.read_text()) if path and path.is_file() else None


def inputs_of(sampling: Sampling, model: Model, store: Store, lora: Path | None, lora_scale: float) -> dict[str, Any]:
    """What the images depend on: the key of their store entry."""
    return {
        "version": VERSION,
        "model": model.identity,
        "dtype": str(model.dtype).removeprefix("torch."),
        "lora": None if lora is None else store.file_hash(lora),
        "lora_scale": None if lora is None else lora_scale,
        **keyed(sampling),
    }


def remove_strays(folder: Path, every: Sequence[Shot]) -> None:
    """Delete what a killed process left besides images (half-written files), or it would become part of the entry."""
    expected = {shot.path for shot in every}
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in expected:
            path.unlink()
