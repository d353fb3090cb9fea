"""What may be asked of `dbexp-export`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from dbexp.config import help
from dbexp.core.errors import ConfigError
from dbexp.export.settings import ExportConfig, check


def test_every_field_is_explained() -> None:
    docs = help.docs(ExportConfig)
    assert list(docs) == [field.name for field in dataclasses.fields(ExportConfig)]
    assert all(sentence.endswith(".") and len(sentence) > 5 for sentence in docs.values())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"format": ["onnx"]}, "format=onnx: choose one of diffusers, kohya"),
        ({"format": []}, "format=[]"),
        ({"pictures": -1}, "pictures=-1: must be at least 0"),
        ({"check_steps": 0}, "check_steps=0: must be at least 1"),
        ({"objective": "x"}, "objective=x: choose one of"),
        ({"push": "rex"}, "push=rex: must be user/name"),
        ({"base": "a/b/c"}, "base=a/b/c: must be user/name"),
        ({"push": "me/rex", "card": False}, "needs the model card"),
        ({"folder": __file__}, "is a file"),
    ],
)
def test_what_is_wrong(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(ExportConfig(**{"run": "x", **fields}))
    (problem,) = caught.value.problems
    assert says in problem
