"""The sample stage: images of every prompt with the adapter on, and class samples with it on and off for PRES.

The base model and every LoRA draw the same prompts from the same noise, so that their images compare in pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.sample.sets import cost_of, draw_set
from dbexp.sample.shots import Sampling


@dataclass(frozen=True)
class SampleRequest:
    """What a run samples, with its LoRA and without."""

    groups: Mapping[str, str]
    """Prompt, filled in -> recontextualisation, accessory, property or other."""
    sampling: Sampling
    """Of the prompts."""
    class_sampling: Sampling | None
    """Of the class samples, on noise that no sample and no prior image has; None: there are none."""
    lora_scale: float
    """Strength of the LoRA."""
    batch_size: int
    """Images drawn at once."""
    grows: bool = False
    """See `Drawing`."""
    compile: str = "none"
    """Likewise."""


def sample_prompts(
    request: SampleRequest, model: Model, lora: Path | None, store: Store
) -> dict[str, tuple[Path, ...]]:
    """Images of every prompt, from the store where they were drawn before.

    Args:
        request: of the run.
        model: the base model.
        lora: the LoRA file merged into it meanwhile; None: the base model alone, on the same noise.
        store: where the images are kept, in one folder per prompt.

    Returns:
        Prompt -> its PNG files, by number.

    Raises:
        ConfigError: memory does not suffice for `sample.batch_size`.
    """
    files, each = _draw(request, request.sampling, model, lora, store), request.sampling.images_per_prompt
    return {text: files[i * each : (i + 1) * each] for i, text in enumerate(request.sampling.prompts)}


def sample_class(request: SampleRequest, model: Model, lora: Path | None, store: Store) -> tuple[Path, ...]:
    """The PNG files of the class samples; arguments and errors as those of `sample_prompts`."""
    sampling = request.class_sampling
    return () if sampling is None else _draw(request, sampling, model, lora, store)


def sample_cost(request: SampleRequest, model: Model, lora: Path | None, store: Store) -> dict[str, Any] | None:
    """What the images of a run took, prompts and class together: as `sets.cost_of`; None where it is not on record."""
    samplings = [request.sampling, *([request.class_sampling] if request.class_sampling else [])]
    costs = [cost_of("sample", sampling, model, store, lora, request.lora_scale) for sampling in samplings]
    if any(cost is None for cost in costs):
        return None
    memory = [cost["memory_mib"] for cost in costs if cost["memory_mib"] is not None]
    return {
        "images": sum(cost["images"] for cost in costs),
        "seconds": round(sum(cost["seconds"] for cost in costs), 3),
        "memory_mib": max(memory, default=None),
        "memory_of": costs[0]["memory_of"],
    }


def _draw(
    request: SampleRequest, sampling: Sampling, model: Model, lora: Path | None, store: Store
) -> tuple[Path, ...]:
    title = "sample" if sampling.stream == "sample" else "sample, class samples"
    return draw_set(
        "sample",
        sampling,
        model,
        store,
        lora=lora,
        lora_scale=request.lora_scale,
        batch_size=request.batch_size,
        grows=request.grows,
        compile=request.compile,
        ahead=() if request.class_sampling is None else request.class_sampling.prompts,
        description=f"{title}, {'base model' if lora is None else 'adapter on'}",
    )
