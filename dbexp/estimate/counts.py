"""What was counted on a pretended card, and how the store keeps it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from dbexp.core.store import Store
from dbexp.estimate import kept
from dbexp.estimate.operation import Operation

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
    """See `dbexp.estimate.kept`.

    Args:
        count: finds the answer: a `Count`, a `Drawn`, a number or a dictionary of numbers.
    """
    answer: Value = kept.recall(store, question, count, _to_json, _from_json)
    return answer


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
