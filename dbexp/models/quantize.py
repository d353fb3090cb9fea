"""Frozen denoisers in fewer bits: fp8 on any device that has it, nf4 (Dettmers et al., arXiv 2305.14314) on a GPU.

Weights alone are rounded. Activations keep the precision of the model: a scale over a batch would let lanes see each
other.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dbexp.core.errors import ConfigError

STORAGE = torch.float8_e4m3fn
BYTES = {None: None, "fp8": 1.0, "nf4": 0.5}
"""Quantisation -> bytes of a weight; None: those of the model's precision."""


def require(quantize: str | None, device: torch.device) -> None:
    """Raises:
    ConfigError: this machine cannot hold weights that are quantised so.
    """
    if quantize == "fp8" and device.type == "mps":
        raise ConfigError("model.quantize=fp8: mps has no numbers of 8 bits; give null, or model.device=cpu")
    if quantize != "nf4" or device.type == "meta":  # on which nothing is computed
        return
    lacking = [] if importlib.util.find_spec("bitsandbytes") else ["the package bitsandbytes, which is not installed"]
    lacking += [] if device.type == "cuda" else [f"a GPU (model.device is {device})"]
    if lacking:
        raise ConfigError(f"model.quantize=nf4: needs {', and '.join(lacking)}; fp8 needs neither")


class Float8Linear(nn.Linear):
    """A frozen linear layer whose weight is stored as e4m3, without a scale, and computes in the layer's own precision.

    The numbers are those of diffusers' layerwise casting. Its hooks change the weight of a layer in place around each
    call, which gradients do not survive, nor two threads that draw with one network.

    Attributes:
        weight: [out, in]; a buffer, so that the precision of the model's parameters remains what it was.
        bias: [out] or None, in the layer's precision.
    """

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would fill a weight in full precision
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.precision = layer.weight.dtype
        self.register_buffer("weight", layer.weight.detach().to(STORAGE))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        y: Tensor = _Product.apply(x, self.weight, self.bias, self.precision)
        return y


class _Product(torch.autograd.Function):
    """x W^T + b, which keeps the 8 bits of W for the backward pass rather than a copy in full precision."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, precision: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.dtype = x.dtype
        return nn.functional.linear(x, weight.to(precision), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = gradients
        (weight,) = ctx.saved_tensors
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None, None, None


def round_to_fp8(module: Any, always_kept: Sequence[str]) -> None:
    """Store the linear layers of a frozen denoiser of diffusers in 8 bits, but for those that are sensitive to it.

    Args:
        always_kept: patterns of names that diffusers skips in every model; the model has others of its own.
    """
    kept = {*always_kept, *(module._keep_in_fp32_modules or ()), *(module._skip_layerwise_casting_patterns or ())}
    _round(module, "", [re.compile(pattern) for pattern in sorted(kept)])


def _round(module: nn.Module, name: str, kept: Sequence[re.Pattern[str]]) -> None:
    for child_name, child in list(module.named_children()):
        path = f"{name}.{child_name}" if name else child_name
        if any(pattern.search(path) for pattern in kept):
            continue
        if type(child) is nn.Linear:
            setattr(module, child_name, Float8Linear(child))
        else:
            _round(child, path, kept)
