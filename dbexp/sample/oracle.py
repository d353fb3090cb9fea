"""Images of the true subject in the scenes of the prompts: what a perfect model would draw.

Only a drawn world has them, so only the storybook's subjects do. They bound from above what any training can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dbexp.config.schema import DatasetConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.sample.shots import slug


def oracle_samples(
    cfg: DatasetConfig, prompts: Sequence[str], each: int, store: Store
) -> dict[str, tuple[Path, ...]] | None:
    """Images of the subject for every prompt, from the store where they were drawn before.

    Args:
        cfg: the subject.
        prompts: filled in, as samples are drawn from them.
        each: images per prompt.
        store: where they are kept.

    Returns:
        Prompt -> `each` RGB PNG files of 64 x 64; None when the subject is a photographed one, or when a prompt of the
        user's own asks for a scene that the world has not.
    """
    if cfg.source != "storybook":
        return None
    from dbexp.storybook.world.subjects import oracle
    from dbexp.storybook.world.world import VERSION, scene_of

    try:
        for prompt in prompts:
            scene_of(prompt)
    except ConfigError:
        return None
    name = cfg.name.rpartition("/")[2]
    folders = {prompt: f"{number:02}-{slug(prompt)}" for number, prompt in enumerate(prompts)}

    def make(folder: Path) -> None:
        for prompt, subfolder in folders.items():
            oracle(name, prompt, each, folder / subfolder)

    inputs = {"version": 1, "storybook": VERSION, "oracle": name, "prompts": list(prompts), "each": each}
    entry = store.get("dataset", inputs, make)
    return {prompt: tuple(sorted((entry / subfolder).glob("*.png"))) for prompt, subfolder in folders.items()}
