"""What is drawn: a set of images as its settings describe it, and every image of it with its seed and its file name."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dbexp.core.hashing import seed_of

_SLUG_CHARACTERS = 60


@dataclass(frozen=True)
class Sampling:
    """What a set of images depends on besides the weights. Its fields are part of the store's keys."""

    stream: str
    """Use of the images (prior, sample, class). Different streams never share noise, whatever their seeds."""
    seed: int
    """Seed of the set."""
    prompts: tuple[str, ...]
    """Filled in, each once."""
    images_per_prompt: int
    """Images of each prompt."""
    steps: int
    """Sampling steps."""
    guidance_scale: float
    """Classifier-free guidance; 1 or less: none."""
    sampler: str | None
    """Name of a sampler of the model's family; None: the checkpoint's own."""
    resolution: int
    """Width and height in pixels."""
    negative_prompt: str = ""
    """What to steer away from."""


@dataclass(frozen=True)
class Shot:
    """One image to draw."""

    prompt: str
    """What the text encoder reads."""
    seed: int
    """Of its random generator, which no other image shares."""
    path: str
    """File name below the folder of the set."""
    k: int | None = None
    """Number among the images of its prompt, from 0; None: the seed says enough."""

    @property
    def metadata(self) -> dict[str, object]:
        """What its file says of itself alone."""
        number = {} if self.k is None else {"k": self.k}
        return {"prompt": self.prompt, **number, "seed": self.seed}


def image_seed(sampling: Sampling, prompt: str, k: int) -> int:
    """Seed of the generator of image k of a prompt.

    A hash, so that neighbouring seeds, prompts and numbers have unrelated noise, and one image can be drawn without
    those before it.
    """
    return seed_of(sampling.seed, sampling.stream, prompt, k)


def shots(sampling: Sampling) -> tuple[Shot, ...]:
    """Every image of a set, prompt by prompt.

    A set of one prompt in the streams prior and class lies flat (0000.png); samples have a folder for each prompt
    (03-a-sks-dog-on-a-cobblestone-street/0.png).
    """
    flat = sampling.stream != "sample"
    return tuple(
        Shot(
            prompt,
            image_seed(sampling, prompt, k),
            f"{k:04}.png" if flat else f"{number:02}-{slug(prompt)}/{k}.png",
            k,
        )
        for number, prompt in enumerate(sampling.prompts)
        for k in range(sampling.images_per_prompt)
    )


def slug(text: str) -> str:
    """A text as part of a file name: lower-case letters, digits and dashes, at most 60; `prompt` when none is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_SLUG_CHARACTERS].rstrip("-") or "prompt"
