"""Cards by their data sheets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True)
class Card:
    """What a data sheet says, dense and without sparsity.

    Attributes:
        title: as CUDA names it, in part.
        memory: bytes.
        rate: TFLOP/s of matrix products in 16 bits, summed in fp32.
        wide_rate: TFLOP/s in fp32 without TF32.
        bandwidth: GB/s of its memory.
        capability: of compute.
    """

    title: str
    memory: int
    rate: float
    wide_rate: float
    bandwidth: float
    capability: tuple[int, int] = (8, 0)


CARDS: Mapping[str, Card] = {
    "h100": Card("H100", 80 * GIB, 989, 67, 3350, (9, 0)),
    "h200": Card("H200", 141 * 10**9, 989, 67, 4800, (9, 0)),
    "a100": Card("A100", 80 * GIB, 312, 19.5, 2039),
    "4090": Card("RTX 4090", 24 * GIB, 165, 82.6, 1008, (8, 9)),
    "3090": Card("RTX 3090", 24 * GIB, 71, 35.6, 936, (8, 6)),
    "t4": Card("T4", 16 * GIB, 65, 8.1, 320, (7, 5)),
    "l4": Card("L4", 24 * GIB, 121, 30.3, 300, (8, 9)),
}
