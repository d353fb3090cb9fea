"""A roofline: an operation takes the longest of its arithmetic, its bytes and its launch (Williams et al., Roofline,
CACM 52(4), 2009)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dbexp.estimate.cards import Card
from dbexp.estimate.operation import Operation

_PRODUCT, _CONVOLUTION = 0.70, 0.60
"""Shares of the dense rate that libraries reach at the sizes of these models."""
_ATTENTION = ((64, 0.26), (128, 0.32), (256, 0.45))
"""Width of a head up to which attention reaches a share: narrow ones are computed as if they had 64 channels."""
_BYTES = 0.80
"""Share of the bandwidth."""
_LEAST = 2.5e-6
"""Seconds that a kernel takes at least."""
LAUNCH = 8e-6
"""Seconds of the host for an operation that Python launches, its part of autograd included."""


def seconds(operations: Mapping[Operation, int], card: Card) -> float:
    """How long a card is busy with operations one after the other, or the host with launching them."""
    busy = sum(count * _seconds(operation, card) for operation, count in operations.items())
    return max(busy, LAUNCH * sum(operations.values()))


def is_launched_slowly(operations: Mapping[Operation, int], card: Card) -> bool:
    """Whether the card waits for the host."""
    return seconds(operations, card) <= LAUNCH * sum(operations.values())


def _seconds(operation: Operation, card: Card) -> float:
    moved = operation.bytes / (_BYTES * card.bandwidth * 1e9)
    if not operation.flops:
        return max(moved, _LEAST)
    dtypes = [dtype for _, dtype in operation.inputs if dtype.is_floating_point]
    rate = card.wide_rate if torch.float32 in dtypes[:2] else card.rate
    return max(operation.flops / (_share(operation) * rate * 1e12), moved, _LEAST)


def _share(operation: Operation) -> float:
    if "convolution" in operation.name:
        return _CONVOLUTION
    if "attention" not in operation.name:
        return _PRODUCT
    width = operation.inputs[0][0][-1]
    return next((share for most, share in _ATTENTION if width <= most), _ATTENTION[-1][1])
