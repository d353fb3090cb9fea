"""A look at the world that the built-in model was trained on.

python -m dbexp.storybook.world.show world.png
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image

from dbexp.storybook.world.identity import CLASS_NOUNS, character, identity
from dbexp.storybook.world.world import contact_sheet, draw, scenes_of_class


def world_sheet(columns: int = 12, size: int = 96, seed: int = 0) -> Image.Image:
    """A row per class: every picture another character, in another of the scenes of both prompt lists.

    Args:
        columns: pictures of each class, at most 25.
        size: width and height of a picture in pixels; the model's own pictures have 64.
        seed: of everything.
    """
    pictures = []
    for class_noun in CLASS_NOUNS:
        rng = random.Random(f"{seed} {class_noun}")
        for number, scene in enumerate(rng.sample(scenes_of_class(class_noun), columns)):
            # captions know natural coats and plain colours; the odd ones are those that bear an invented name
            who = (identity, character)[number % 2](rng, class_noun)
            pictures.append(draw(who, scene, rng, size))
    return contact_sheet(pictures, columns)


def main() -> None:
    """Write the sheet."""
    parser = argparse.ArgumentParser(description=world_sheet.__doc__.splitlines()[0] if world_sheet.__doc__ else None)
    parser.add_argument("file", type=Path, help="picture to write, such as world.png")
    world_sheet().save(parser.parse_args().file, optimize=True)


if __name__ == "__main__":
    main()
