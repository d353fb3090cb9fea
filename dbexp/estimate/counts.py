"""What was counted on a pretended card, and how it is found again: a second question about a sweep is answered at once.

A count is an entry of the store. Its key has everything that it depends on: settings, the configuration of the base
model, the libraries, and the code that ran, of which every edit counts.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from dbexp.core.errors import ConfigError
from dbexp.core.files import write_atomic
from dbexp.core.hashing import file_hash
from dbexp.core.provenance import code_hash, package_versions
from dbexp.core.store import Store
from dbexp.estimate.card import Operation

STAGE = "estimate"
_VERSION = 1
_FILE = "count.json"
_CODE = ("core", "config", "models", "train", "sample", "evaluate", "estimate")

Value = TypeVar("Value")


@dataclass(frozen=True)
class Count:
    """Of something that a card does.

    Attributes:
        operations: how often each is launched.
        peak: bytes of tensors at most.
    """

    operations: Mapping[Operation, int]
    peak: int
    key: str = ""
    """Of trainings, see `dbexp.train.measured.key`."""


@dataclass(frozen=True)
class Drawn:
    """A batch of images: a step of its sampler, and all that comes before and after the steps."""

    step: Count
    rest: Count


def recall(store: Store | None, question: Mapping[str, Any], count: Callable[[], Value]) -> Value:
    """What was counted before, or what is counted now, and kept for the next time if that can be.

    Args:
        store: None: nothing is kept.
        question: JSON-like; all that the answer depends on, code and libraries aside.
        count: finds the answer: a `Count`, a `Drawn`, a number or a dictionary of numbers.
    """
    if store is None:
        return count()
    inputs = {"version": _VERSION, "code": code_hash(*_CODE), "packages": _packages(), **question}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        folder = store.find(STAGE, inputs)
        if folder is not None:
            found: Value = _from_json(json.loads((folder / _FILE).read_text(encoding="utf-8")))
            return found
    answer = count()
    text = json.dumps(_to_json(answer))
    with contextlib.suppress(ConfigError, OSError):  # an estimate is not lost where nothing can be written
        store.get(STAGE, inputs, lambda folder: write_atomic(folder / _FILE, text))
    return answer


def described(folder: Path) -> dict[str, str]:
    """The configuration of a pipeline folder: hashes of its files of settings, by name."""
    return {path.relative_to(folder).as_posix(): file_hash(path) for path in sorted(folder.rglob("*.json"))}


@cache
def _packages() -> dict[str, str | None]:
    return package_versions()


def _to_json(value: Any) -> Any:
    if isinstance(value, Drawn):
        return {"step": _to_json(value.step), "rest": _to_json(value.rest)}
    if not isinstance(value, Count):
        return {"value": value}
    operations = [
        [count, operation.name, _shapes(operation.inputs), _shapes(operation.outputs), operation.bytes, operation.flops]
        for operation, count in value.operations.items()
    ]
    return {"operations": operations, "peak": value.peak, "key": value.key}


def _shapes(tensors: Any) -> list[Any]:
    return [[shape, str(dtype).removeprefix("torch.")] for shape, dtype in tensors]


def _from_json(value: Any) -> Any:
    if "value" in value:
        return value["value"]
    if "step" in value:
        return Drawn(_from_json(value["step"]), _from_json(value["rest"]))
    operations = {
        Operation(name, _tensors(inputs), _tensors(outputs), size, flops): count
        for count, name, inputs, outputs, size, flops in value["operations"]
    }
    return Count(operations, value["peak"], value["key"])


def _tensors(shapes: Any) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    return tuple((tuple(shape), getattr(torch, dtype)) for shape, dtype in shapes)
