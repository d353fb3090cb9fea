"""Operations of torch by themselves: what two have in common that take equally long, and what they make of what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")

aten: Any = torch.ops.aten
LAYOUT_ONLY = {
    *(aten.detach.default, aten.alias.default, aten._unsafe_view.default, aten.lift_fresh.default),
    *(aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default),
}
"""Operations that launch no kernel, views aside."""
WRITES_ALONE = {aten._fused_adamw_.tensor_lr}
"""Operations that only write to what they are given, and do not know meta tensors."""


@dataclass(frozen=True)
class Operation:
    """What is told of an operation: two that are equal take equally long.

    Attributes:
        name: of torch, `aten.mm.default`.
        inputs: (shape, dtype) of the tensors on the card that it reads.
        outputs: of those that it makes.
        bytes: read and written, at least.
        flops: of matrix products, convolutions and attention, a multiplication and an addition counted as two.
    """

    name: str
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    bytes: int
    flops: int


def shapes(tensors: Sequence[Tensor]) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """(shape, dtype) of each."""
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in tensors)


@cache
def is_view(func: Any) -> bool:
    """Whether an operation's result shares the memory of its first argument."""
    returns = func._schema.returns
    alias = returns[0].alias_info if returns else None
    return alias is not None and not alias.is_write


def counts_flops(func: Any) -> bool:
    """Whether torch knows how many floating-point operations it takes."""
    return func.overloadpacket in flop_registry


def signature_of(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Equal for operations that make equal things; None where that cannot be told by their arguments, or where they
    make nothing of their own."""
    if not _makes_its_own(func):
        return None
    try:
        signature = (
            func,
            _described(args),
            tuple(sorted((name, _described((value,))) for name, value in kwargs.items())),
        )
        hash(signature)
    except TypeError:
        return None
    return signature


def _described(values: Iterable[Any]) -> tuple[Any, ...]:
    described: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            described.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, list | tuple):
            described.append(_described(value))
        else:
            described.append((type(value).__name__, str(value) if isinstance(value, torch.device) else value))
    return tuple(described)


@cache
def _makes_its_own(func: Any) -> bool:
    """Whether an operation's results are new tensors, or its first argument."""
    if func in LAYOUT_ONLY or func in WRITES_ALONE or is_view(func):
        return False
    return writes_first(func) or not (func._schema.is_mutable or any(each.alias_info for each in func._schema.returns))


@cache
def writes_first(func: Any) -> bool:
    """Whether an operation writes to its first argument, and returns it."""
    schema = func._schema
    written = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
    single = len(written) == len(schema.returns) == 1 and written[0] is schema.arguments[0]
    return single and str(func).partition(".")[2].split(".")[0] not in ("resize_", "resize_as_", "set_")


@dataclass(frozen=True)
class _Made:
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


def description(out: Any) -> Any:
    """Results, with descriptions in the place of tensors."""
    if isinstance(out, Tensor):
        return _Made(tuple(out.shape), out.stride(), out.dtype)
    return type(out)(map(description, out)) if isinstance(out, list | tuple) else out


def made_of(spec: Any) -> Any:
    """New results of such a kind."""
    if isinstance(spec, _Made):
        return torch.empty_strided(spec.shape, spec.strides, dtype=spec.dtype, device=META)
    return type(spec)(map(made_of, spec)) if isinstance(spec, list | tuple) else spec


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among the arguments or results of an operation, which may be lists; torch's own trees take long."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)
