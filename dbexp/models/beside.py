"""A LoRA beside the weights of a base: for weights so coarse that an update merged into them would be rounded away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from dbexp.models import Model
from dbexp.models.lora_file import Layer, add_update, fitting_layer, merged, place_of, put_layer, read


class BesideLinear(nn.Module):
    """y = base(x) + (x A^T) B^T, with the strength of the LoRA in B.

    Args:
        base: the frozen layer.
        down: A [r, in].
        up: B [out, r].
    """

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.base = base
        self.down, self.up = (nn.Parameter(value, requires_grad=False) for value in (down, up))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        y: Tensor = self.base(x)
        return y + nn.functional.linear(nn.functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


@contextlib.contextmanager
def beside(model: Model, path: Path, scale: float = 1.0) -> Iterator[None]:
    """Inside the block the denoiser computes with a LoRA, and the weights of its linear layers are not touched.
    Convolutions are never quantised, so theirs are merged, and restored bit for bit.

    Args:
        model: the base.
        path: a file that `lora_file.write` wrote.
        scale: strength of the LoRA.

    Raises:
        ConfigError: the file is damaged, or was trained on a base of another architecture.
    """
    file, part = read(path, model), model.family.denoiser
    layers: dict[str, BesideLinear] = {}
    convolutions: list[tuple[Layer, float, Tensor, Tensor]] = []
    for name, (down, up) in file.weights.items():
        owner, _, site = name.partition(".")
        if owner == part:
            base = fitting_layer(model, part, site, (up.shape[0], down.shape[1]), path)
            strength = scale * file.alphas[part] / down.shape[0]
            if isinstance(base, nn.Linear):
                place = place_of(model.part(part), site)
                layers[place] = BesideLinear(base, down, strength * up).to(model.device)
            else:
                convolutions.append((base, strength, down, up))
    originals = [(layer, layer.weight.detach().clone()) for layer, *_ in convolutions]
    try:
        for site, layer in layers.items():
            put_layer(model.part(part), site, layer)
        with torch.no_grad():
            for update in convolutions:
                add_update(*update)
        yield
    finally:
        for site, layer in layers.items():
            put_layer(model.part(part), site, layer.base)
        with torch.no_grad():
            for convolution, weight in originals:
                convolution.weight.copy_(weight)


def adapted_base(model: Model, path: Path | None) -> AbstractContextManager[None]:
    """Inside the block the denoiser that is trained on is W + B A of a LoRA; the originals wait in main memory.

    Args:
        path: a file that `lora_file.write` wrote; None: the block sees the base itself.

    Raises:
        ConfigError: see `beside`.
    """
    if path is None or model.quantize is None:
        return merged(model, path, parts=[model.family.denoiser], originals_on=torch.device("cpu"))
    return beside(model, path)


def adapted(model: Model, path: Path | None, scale: float = 1.0) -> AbstractContextManager[None]:
    """Inside the block the denoiser draws with a LoRA: merged, which is faster, or beside weights that are quantised.

    Args:
        path: a file that `lora_file.write` wrote; None: the block sees the base itself.
        scale: strength of the LoRA.

    Raises:
        ConfigError: see `beside`.
    """
    if path is None or model.quantize is None:
        return merged(model, path, scale, [model.family.denoiser])
    return beside(model, path, scale)
