"""LoRAs beside the weights of a base: for weights so coarse that an update merged into them would be rounded away, and
for batches whose rows are drawn with different LoRAs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from dbexp.core.errors import ConfigError
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


class Rows:
    """Which LoRA each row of a batch is drawn with. Every thread has a batch of its own."""

    def __init__(self) -> None:
        self._batch = threading.local()
        self.last = torch.empty(0, dtype=torch.int64)
        """What `set` was told last, in whichever thread."""

    def set(self, lanes: Sequence[int], device: torch.device) -> None:
        """The calling thread draws with these LoRAs next, one a row."""
        self._batch.lanes = self.last = torch.tensor(lanes, device=device)

    def of(self, count: int) -> Tensor:
        """The LoRA of each of so many rows: with guidance, pipelines put all rows of a batch again behind it."""
        # the compiler knows no threads, and what it compiled is used by one alone
        lanes: Tensor = self.last if torch.compiler.is_compiling() else self._batch.lanes
        again, rest = divmod(count, len(lanes))
        if rest:
            raise RuntimeError(f"{count} rows came of a batch of {len(lanes)} images")
        return lanes.repeat(again)


class RowsLinear(nn.Module):
    """y = base(x) + (x A_k^T) B_k with the LoRA k of each row, the strength of it in B_k.

    Args:
        base: the frozen layer.
        down: A, [K, R, in]; ranks below R have rows of zeros.
        up: B, [K, R, out].
        rows: shared by all layers.
    """

    def __init__(self, base: nn.Linear, down: Tensor, up: Tensor, rows: Rows) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        self.down, self.up = (nn.Parameter(value, requires_grad=False) for value in (down, up))

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., in] -> [N, ..., out]"""
        y: Tensor = self.base(x)
        lanes = self.rows.of(len(x))
        inner = torch.bmm(x.reshape(len(x), -1, x.shape[-1]).to(self.down.dtype), self.down[lanes].transpose(1, 2))
        return y + torch.bmm(inner, self.up[lanes]).reshape(y.shape).to(y.dtype)


@contextlib.contextmanager
def side_by_side(model: Model, loras: Sequence[tuple[Path, float]]) -> Iterator[Rows]:
    """Inside the block the denoiser computes each row of a batch with a LoRA of its own.

    Args:
        model: the base.
        loras: files that training wrote, which adapt linear layers alone, with the strength of each.

    Yields:
        What has to be told which rows come next.

    Raises:
        ConfigError: see `beside`; or a file adapts a convolution.
    """
    part, rows = model.family.denoiser, Rows()
    pairs: dict[str, dict[int, tuple[Tensor, Tensor]]] = {}
    bases: dict[str, nn.Linear] = {}
    for lane, (path, scale) in enumerate(loras):
        file = read(path, model)
        for name, (down, up) in file.weights.items():
            owner, _, site = name.partition(".")
            if owner != part:
                continue
            base = fitting_layer(model, part, site, (up.shape[0], down.shape[1]), path)
            if not isinstance(base, nn.Linear):
                raise ConfigError(f"{path}: adapts the convolution {site}, which draws for one LoRA at a time")
            place = place_of(model.part(part), site)
            bases[place] = base
            pairs.setdefault(place, {})[lane] = down, scale * file.alphas[part] / down.shape[0] * up
    layers = {
        place: RowsLinear(base, *_stacked(pairs[place], len(loras)), rows).to(model.device, model.dtype)
        for place, base in bases.items()
    }
    try:
        for place, layer in layers.items():
            put_layer(model.part(part), place, layer)
        yield rows
    finally:
        for place, layer in layers.items():
            put_layer(model.part(part), place, layer.base)


def _stacked(pairs: Mapping[int, tuple[Tensor, Tensor]], lanes: int) -> tuple[Tensor, Tensor]:
    """A [K, R, in] and B [K, R, out] of a layer; zeros for lanes that do not adapt it."""
    down, up = next(iter(pairs.values()))
    rank = max(len(each) for each, _ in pairs.values())
    downs, ups = torch.zeros(lanes, rank, down.shape[1]), torch.zeros(lanes, rank, up.shape[0])
    for lane, (each_down, each_up) in pairs.items():
        downs[lane, : len(each_down)], ups[lane, : len(each_down)] = each_down, each_up.T
    return downs, ups


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
