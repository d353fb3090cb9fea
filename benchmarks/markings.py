"""Which of its markings a drawn subject carries in the pictures of a run, counted by the world that drew the subject.

    python benchmarks/markings.py RUN [RUN ...]

The world draws the subject of a run in the scene of each prompt, in many poses, once with all markings and once without
each of them; equal seeds give equal poses, so the two differ in the marking alone, and where they differ is its place.
Of these drawings the one that fits a picture best is taken, where a place counts as fitting with its marking or
without. A marking is there if the colours of its place are nearer to the marking than half the way to the coat, in
whatever direction they are off:

    sum((picture - with)^2) < 1/4 sum((without - with)^2)

over the pixels of the place (at least `LEAST`, or the scene hides the marking and it is not asked for), all of them
blurred by a pixel. A picture carries the markings where more than half of those that can be seen are there. What the
rule makes of the world's own drawings, of the same character without markings, of other characters, and of the world's
drawings after the autoencoder, stands beside the runs.
"""

from __future__ import annotations

import argparse
import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageFilter

import dbexp
from dbexp.core.images import read_rgb
from dbexp.runs import record
from dbexp.storybook.world.identity import Identity, identity
from dbexp.storybook.world.subjects import SUBJECTS, oracle_pictures
from dbexp.storybook.world.world import draw, draw_with_mask, scene_of

POSES = 48
"""Drawings that a picture is held against."""
LEAST = 8
"""Pixels that a marking must show of itself, of 64 x 64."""
_VISIBLE = 24  # difference of a colour, of 255, that belongs to a marking
_AROUND = 0.2  # weight of what surrounds the subject when drawings are compared

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Drawing:
    """The subject in one pose.

    Attributes:
        whole: [64, 64, 3] with all markings.
        bare: the same without any.
        without: marking -> the same without it.
        weight: [64, 64] how much each pixel counts when a picture is compared.
    """

    whole: Array
    bare: Array
    without: Mapping[str, Array]
    weight: Array

    def distance(self, picture: Array) -> float:
        """How far a picture is, whichever of the two a marking's place looks like."""
        error = np.minimum(np.abs(picture - self.whole).sum(2), np.abs(picture - self.bare).sum(2))
        return float((error * self.weight).sum() / self.weight.sum())

    def present(self, picture: Array) -> dict[str, bool]:
        """Marking that can be seen -> whether the picture has it."""
        found = {}
        for marking, without in self.without.items():
            change = self.whole - without
            place = np.abs(change).max(2) > _VISIBLE
            if place.sum() >= LEAST:
                off = (picture - self.whole)[place]
                found[marking] = bool(np.square(off).sum() < np.square(change[place]).sum() / 4)
        return found


@functools.cache
def drawings(subject: str, prompt: str) -> tuple[Drawing, ...]:
    """The subject in the scene of a prompt, in `POSES` poses that no oracle picture has."""
    return tuple(_drawing(SUBJECTS[subject].identity, prompt, f"markings/{subject}/{prompt}/{i}") for i in range(POSES))


def _drawing(who: Identity, prompt: str, seed: str) -> Drawing:
    def pixels(markings: frozenset[str]) -> Array:
        return _array(draw(replace(who, markings=markings), scene_of(prompt), random.Random(seed)))

    mask = draw_with_mask(who, scene_of(prompt), random.Random(seed))[1]
    weight = _AROUND + (1 - _AROUND) * np.asarray(mask, np.float32) / 255
    without = {marking: pixels(who.markings - {marking}) for marking in sorted(who.markings)}
    return Drawing(pixels(who.markings), pixels(frozenset()), without, weight)


def markings(subject: str, prompt: str, picture: Image.Image) -> dict[str, bool]:
    """Marking that the scene shows -> whether an RGB picture of 64 x 64 has it."""
    pixels = _array(picture)
    return min(drawings(subject, prompt), key=lambda drawing: drawing.distance(pixels)).present(pixels)


def carries(found: Mapping[str, bool]) -> bool:
    """Whether a picture carries the subject's markings: more than half of those that can be seen."""
    return 2 * sum(found.values()) > len(found)


def _array(picture: Image.Image) -> Array:
    """[64, 64, 3] from 0 to 255, blurred: a place may be a pixel aside."""
    return np.asarray(picture.filter(ImageFilter.BoxBlur(1)), np.float32)


@dataclass(frozen=True)
class Count:
    """Pictures that carry the markings, that have all of them, of how many; and of each marking of how many."""

    title: str
    carry: int
    complete: int
    pictures: int
    each: Mapping[str, tuple[int, int]]

    def row(self) -> str:
        """As a line of a Markdown table."""
        each = ", ".join(f"{name} {n} of {of}" for name, (n, of) in self.each.items())
        return f"| {self.title} | {self.carry} of {self.pictures} | {self.complete} | {each} |"


def count(title: str, subject: str, pictures: Iterable[tuple[str, Image.Image]]) -> Count:
    """Count over (prompt, picture); a picture whose scene hides every marking is left out."""
    found = [each for prompt, picture in pictures if (each := markings(subject, prompt, picture))]
    names = sorted({name for each in found for name in each})
    by_name = {name: [each[name] for each in found if name in each] for name in names}
    return Count(
        title,
        sum(map(carries, found)),
        sum(all(each.values()) for each in found),
        len(found),
        {name: (sum(values), len(values)) for name, values in by_name.items()},
    )


def controls(subject: str, prompts: Sequence[str]) -> list[Count]:
    """What the rule makes of pictures whose markings are known."""
    who = SUBJECTS[subject].identity
    bare = replace(who, markings=frozenset())

    def drawn(characters: Iterable[Identity]) -> list[tuple[str, Image.Image]]:
        pairs = zip(prompts, characters, strict=False)
        return [(prompt, draw(other, scene_of(prompt), random.Random(f"control/{prompt}"))) for prompt, other in pairs]

    rng = random.Random(f"strangers of {subject}")
    true = [(prompt, oracle_pictures(subject, prompt, 1)[0]) for prompt in prompts]
    return [
        count("the world's own drawings", subject, true),
        count("these after the autoencoder", subject, reconstructed(true)),
        count("the same without markings", subject, drawn([bare] * len(prompts))),
        count(f"other {who.class_noun}s", subject, drawn([identity(rng, who.class_noun) for _ in prompts])),
    ]


def reconstructed(pictures: Sequence[tuple[str, Image.Image]]) -> list[tuple[str, Image.Image]]:
    """What the built-in model's autoencoder makes of pictures: no denoiser draws better."""
    weights = Path(dbexp.__file__).parent / "storybook/weights/vae"
    vae = AutoencoderKL.from_pretrained(weights, torch_dtype=torch.float32)
    pixels = torch.stack([torch.from_numpy(np.array(picture)) for _, picture in pictures]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        decoded = vae.decode(vae.encode(pixels / 127.5 - 1).latent_dist.mean).sample
    levels = ((decoded + 1) * 127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [(prompt, Image.fromarray(level)) for (prompt, _), level in zip(pictures, levels, strict=True)]


def samples(folder: Path, row: str = "run") -> tuple[str, list[tuple[str, Image.Image]]]:
    """The subject of a run and its pictures with their prompts.

    Args:
        folder: of the run.
        row: run, or base for those of the base model.
    """
    run = record.read(folder)
    assert run.report is not None, f"{folder} has no evaluation"
    pictures = [(s.prompt, read_rgb(folder / s.path)) for s in run.report.images if s.row == row]
    return str(run.config["dataset.name"]).removeprefix("storybook/"), pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    print("| pictures | carry the markings | have all | each marking |\n|---|---|---|---|")
    known: set[str] = set()
    for folder in parser.parse_args().runs:
        subject, pictures = samples(folder)
        if subject not in known:
            known.add(subject)
            for control in controls(subject, sorted({prompt for prompt, _ in pictures})):
                print(replace(control, title=f"{subject}: {control.title}").row(), flush=True)
            print(count(f"{subject}: base model", subject, samples(folder, "base")[1]).row(), flush=True)
        print(count(f"{subject}: {folder}", subject, pictures).row(), flush=True)


if __name__ == "__main__":
    main()
