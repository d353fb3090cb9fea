"""`package:` names what ships with dbexp, by the same words on every machine; and JSON that people look into."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dbexp
from dbexp.core.files import locate, readable
from dbexp.evaluate.backbones.base import origin


def test_what_ships_with_dbexp_is_found_beside_the_code() -> None:
    assert (
        locate("package:storybook/world/world.py") == Path(dbexp.__file__).parent / "storybook" / "world" / "world.py"
    )
    assert locate("package:storybook/world/world.py").is_file()


def test_everything_else_is_a_path_of_the_user() -> None:
    assert locate("~/weights").parent == Path.home()
    assert locate("weights/a.safetensors") == Path("weights/a.safetensors")


def test_a_backbone_is_called_the_same_wherever_dbexp_is_installed() -> None:
    assert origin("package:storybook/weights/metrics/dino/dino.safetensors").startswith("package:storybook")
    assert origin("elsewhere/dino.pth") == "file"


def test_an_entry_a_line_to_some_depth() -> None:
    value = {
        "a": {"pictures": [{"path": "ä.png", "values": {"dino": 0.5}}, {"path": "b", "values": {}}]},
        "b": [1, None],
    }
    assert readable(value).splitlines() == [
        "{",
        ' "a": {',
        '  "pictures": [',
        '   {"path": "ä.png", "values": {"dino": 0.5}},',
        '   {"path": "b", "values": {}}',
        "  ]",
        " },",
        ' "b": [',
        "  1,",
        "  null",
        " ]",
        "}",
    ]


def test_it_is_the_same_value() -> None:
    values: list[Any] = [{}, [], {"a": {}, "b": []}, 'quotes " and\nlines', 0.1, {"1": [[[[1, 2], {"x": [True]}]]]}]
    for value in values:
        for depth in range(5):
            assert json.loads(readable(value, depth)) == value
