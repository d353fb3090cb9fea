"""The layers of a part by its configuration alone: names and widths, before any weight is read."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

Width: TypeAlias = tuple[int, int]
"""(outputs, inputs) of a layer whose weight is looked at as a matrix: inputs of a convolution are those of a patch."""


def build(cls: Any, folder: Path) -> Any:
    """A module of diffusers or transformers by its configuration alone, with whatever weights its class begins with."""
    if hasattr(cls, "load_config"):  # of diffusers
        return cls.from_config(cls.load_config(folder))
    return cls(cls.config_class.from_pretrained(folder))


@lru_cache(maxsize=16)
def outline(cls: Any, folder: Path) -> nn.Module:
    """A part without weights, which takes no memory.

    Args:
        cls: of the module.
        folder: with its configuration.
    """
    with torch.device("meta"):
        module: nn.Module = build(cls, folder)
    return module


def layers_of(module: nn.Module) -> dict[str, Width]:
    """The layers of a part that a LoRA can adapt, in its order."""
    return {name: width_of(layer) for name, layer in module.named_modules() if is_layer(layer)}


def is_layer(module: nn.Module) -> bool:
    """Whether a LoRA can adapt a module: a linear layer, or a convolution of all channels."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def width_of(layer: Any) -> Width:
    """See `Width`; not by the weight, which 4 bits pack."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.out_channels, layer.in_channels * math.prod(layer.kernel_size)
