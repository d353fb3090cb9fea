"""JSON that people look into."""

from __future__ import annotations

import json

from dbexp.core.readable import readable


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
    for value in ({}, [], {"a": {}, "b": []}, 'quotes " and\nlines', 0.1, {"1": [[[[1, 2], {"x": [True]}]]]}):
        for depth in range(5):
            assert json.loads(readable(value, depth)) == value
