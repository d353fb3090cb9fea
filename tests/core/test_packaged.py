"""`package:` names what ships with dbexp, by the same words on every machine."""

from __future__ import annotations

from pathlib import Path

import dbexp
from dbexp.core.packaged import locate
from dbexp.evaluate.backbones.base import origin


def test_what_ships_with_dbexp_is_found_beside_the_code() -> None:
    assert locate("package:storybook/world.py") == Path(dbexp.__file__).parent / "storybook" / "world.py"
    assert locate("package:storybook/world.py").is_file()


def test_everything_else_is_a_path_of_the_user() -> None:
    assert locate("~/weights").parent == Path.home()
    assert locate("weights/a.safetensors") == Path("weights/a.safetensors")


def test_a_backbone_is_called_the_same_wherever_dbexp_is_installed() -> None:
    assert origin("package:storybook/weights/metrics/dino/dino.safetensors").startswith("package:storybook")
    assert origin("elsewhere/dino.pth") == "file"
