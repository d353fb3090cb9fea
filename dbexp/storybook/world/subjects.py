"""The held-out subjects: characters with markings that pre-training never draws, as small DreamBooth data sets.

    >>> draw_subject("dog", Path("data/dog"))       # doctest: +SKIP
    [PosixPath('data/dog/00.png'), ...]

The world can also draw each subject in every scene of the prompt lists, which real photographs never offer: `oracle`
pictures bound what any metric can reach.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dbexp.core.errors import ConfigError
from dbexp.storybook.world.identity import Identity
from dbexp.storybook.world.world import PICTURE_SIZE, VERSION, Scene, draw, scene_of

CREAM, TEAL, ORANGE = (246, 230, 190), (20, 168, 164), (242, 120, 36)
DARK, PALE_BLUE, YELLOW = (70, 52, 60), (150, 190, 226), (252, 220, 70)


@dataclass(frozen=True)
class HeldOut:
    """One subject: who it is, and the scenes of its training pictures."""

    identity: Identity
    scenes: tuple[Scene, ...]

    @property
    def class_noun(self) -> str:
        """The word that prompts use for its class."""
        return self.identity.class_noun

    @property
    def live(self) -> bool:
        """Whether the live-subject prompts apply."""
        return self.identity.live


def _scenes(*contexts: str) -> tuple[Scene, ...]:
    return tuple(Scene(context=context) for context in contexts)


SUBJECTS: dict[str, HeldOut] = {
    "dog": HeldOut(
        Identity("dog", CREAM, TEAL, ORANGE, "floppy", frozenset({"heart", "cuffs", "socks", "patch", "ears"})),
        _scenes("plain", "blue_house", "wooden_floor", "sunflowers", "plain", "mountain"),
    ),
    "dog2": HeldOut(
        Identity("dog", DARK, PALE_BLUE, YELLOW, "pointed", frozenset({"star", "split", "socks"})),
        _scenes("plain", "beach", "dirt_road", "pink_fabric", "white_rug"),
    ),
    "cat": HeldOut(
        Identity(
            "cat",
            (186, 178, 216),
            (64, 60, 110),
            (150, 220, 60),
            "pointed",
            frozenset({"diamond", "rings", "socks"}),
            eyes=(240, 170, 30),
        ),
        _scenes("plain", "wooden_floor", "autumn", "plain", "city", "white_rug"),
    ),
    "backpack": HeldOut(
        Identity("backpack", TEAL, CREAM, ORANGE, "round", frozenset({"monster", "heart"})),
        _scenes("plain", "wooden_floor", "dirt_road", "sunflowers", "plain", "mountain"),
    ),
    "teapot": HeldOut(
        Identity("teapot", (44, 58, 128), (238, 226, 190), (232, 110, 96), "round", frozenset({"moon"})),
        _scenes("plain", "white_rug", "pink_fabric", "plain", "autumn"),
    ),
}
"""By name; `dataset=storybook/<name>` in the configuration."""


def draw_subject(name: str, folder: Path) -> list[Path]:
    """Write the training pictures of a subject as `00.png`, `01.png`, ...: RGB, 64 x 64.

    Everything follows from the name and `world.VERSION`, so the files are the same bytes wherever they are drawn.

    Args:
        name: a key of `SUBJECTS`.
        folder: made if missing; files of the same names are replaced.

    Returns:
        The paths, in order.

    Raises:
        ConfigError: there is no such subject.
    """
    subject = _subject(name)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, scene in enumerate(subject.scenes):
        picture = draw(subject.identity, scene, random.Random(f"storybook {VERSION}/{name}/{i}"))
        paths.append(_save(picture, folder / f"{i:02d}.png"))
    return paths


def oracle(name: str, prompt: str, k: int, folder: Path) -> list[Path]:
    """Write `k` pictures of the true subject in the scene that the prompt asks for, as `00.png`, `01.png`, ...

    Args:
        name: a key of `SUBJECTS`.
        prompt: a filled-in prompt of the fitting list, such as "a sks dog in the snow".
        k: how many pictures.
        folder: made if missing; files of the same names are replaced.

    Raises:
        ConfigError: there is no such subject, or the prompt is outside the world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_save(picture, folder / f"{i:02d}.png") for i, picture in enumerate(oracle_pictures(name, prompt, k))]


def oracle_pictures(name: str, prompt: str, k: int) -> list[Image.Image]:
    """The pictures that `oracle` writes, in memory: RGB, 64 x 64."""
    subject, scene = _subject(name), scene_of(prompt)
    rngs = (random.Random(f"storybook {VERSION}/oracle/{name}/{prompt}/{i}") for i in range(k))
    return [draw(subject.identity, scene, rng, PICTURE_SIZE) for rng in rngs]


def _subject(name: str) -> HeldOut:
    if name not in SUBJECTS:
        raise ConfigError(f"dataset.name={name!r}: the storybook's subjects are {', '.join(SUBJECTS)}")
    return SUBJECTS[name]


def _save(picture: Image.Image, path: Path) -> Path:
    picture.save(path, format="PNG", compress_level=6)
    return path
