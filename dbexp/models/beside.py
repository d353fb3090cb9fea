"""A LoRA beside the weights of a base: for weights so coarse that an update merged into them would be rounded away."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor, nn

from dbexp.models import Model
from dbexp.models.lora_file import fitting_layer, merged, put_layer, read


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
    """Inside the block the denoiser computes with a LoRA, and its weights are not touched.

    Args:
        model: the base.
        path: a file that `lora_file.write` wrote.
        scale: strength of the LoRA.

    Raises:
        ConfigError: the file is damaged, or was trained on a base of another architecture.
    """
    file, part = read(path, model), model.family.denoiser
    layers: dict[str, BesideLinear] = {}
    for name, (down, up) in file.weights.items():
        owner, _, site = name.partition(".")
        if owner == part:
            base = fitting_layer(model, part, site, (up.shape[0], down.shape[1]), path)
            strength = scale * file.alphas[part] / down.shape[0]
            layers[site] = BesideLinear(base, down, strength * up).to(model.device)
    try:
        for site, layer in layers.items():
            put_layer(model.part(part), site, layer)
        yield
    finally:
        for site, layer in layers.items():
            put_layer(model.part(part), site, layer.base)


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
