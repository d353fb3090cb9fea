"""LoRA (Hu et al., arXiv 2106.09685): K adapters side by side on one frozen base.

A site is one linear layer of the base. Shapes: K slots, R the largest rank of any of them, N rows of a batch,
`in` and `out` the site's widths. A slot of smaller rank r uses the first r rows; the rest is zero and stays zero.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dbexp.core.hashing import seed_of
from dbexp.models import LoraFile, Model
from dbexp.models.lora_file import linear_layer, put_layer, write

_Segment: TypeAlias = tuple[int, int, int, int]


class Rows:
    """Which rows of the batch each slot owns: slot k the next counts[k] rows. Set anew before every forward pass.

    Neighbouring slots with equally many rows form a segment, which one batched product serves. No row is padding.
    Threads that each send a batch of their own through the base have rows of their own.
    """

    def __init__(self) -> None:
        self._thread = threading.local()
        self._last: tuple[list[_Segment], int] = ([], 0)

    @property
    def segments(self) -> list[_Segment]:
        """(first slot, last slot + 1, first row, last row + 1)"""
        return self._now()[0]

    @property
    def total(self) -> int:
        """Rows of all slots."""
        return self._now()[1]

    def _now(self) -> tuple[list[_Segment], int]:
        # a thread that never set any is one of autograd's, which computes again what a checkpoint of memory left out
        now: tuple[list[_Segment], int] = getattr(self._thread, "value", self._last)
        return now

    def set(self, counts: Sequence[int]) -> None:
        """Give slot k counts[k] rows; 0 for a slot that sits this pass out."""
        segments, total, slot = list[_Segment](), 0, 0
        while slot < len(counts):
            last = slot
            while last < len(counts) and counts[last] == counts[slot]:
                last += 1
            rows = counts[slot] * (last - slot)
            if rows:
                segments.append((slot, last, total, total + rows))
            total += rows
            slot = last
        self._thread.value = self._last = (segments, total)


class SlotLinear(nn.Module):
    """A frozen linear layer with K adapters: y = base(x) + scale_k * (x A_k^T) B_k for the rows of slot k.

    Args:
        base: the frozen layer.
        slots: K.
        rank: R.
        rows: shared by all sites of a part.

    Attributes:
        down: A, fp32 [K, R, in].
        up: B, fp32 [K, R, out].
        scale: alpha / rank of each slot, fp32 [K, 1, 1].
    """

    scale: Tensor

    def __init__(self, base: nn.Linear, slots: int, rank: int, rows: Rows) -> None:
        super().__init__()
        self.base, self.rows = base, rows
        device = base.weight.device
        self.down = nn.Parameter(torch.zeros(slots, rank, base.in_features, device=device))
        self.up = nn.Parameter(torch.zeros(slots, rank, base.out_features, device=device))
        # gradients live as long as the layer, so that the lanes can hold views of them
        self.down.grad, self.up.grad = torch.zeros_like(self.down), torch.zeros_like(self.up)
        self.register_buffer("scale", torch.ones(slots, 1, 1, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """[N, ..., in] -> [N, ..., out]. N must be the number of rows that `rows` was set to."""
        if x.shape[0] != self.rows.total:
            raise RuntimeError(f"{x.shape[0]} rows came, but lanes own {self.rows.total}")
        y: Tensor = self.base(x)
        updates = [self._update(x[start:end], first, last) for first, last, start, end in self.rows.segments]
        return y + (updates[0] if len(updates) == 1 else torch.cat(updates))

    def _update(self, x: Tensor, first: int, last: int) -> Tensor:
        """The adapters' part for the rows of slots first..last-1."""
        lanes = x.reshape(last - first, -1, x.shape[-1])
        inner = torch.bmm(lanes, self.down[first:last].to(x.dtype).transpose(1, 2))
        up = (self.up[first:last] * self.scale[first:last]).to(x.dtype)
        return torch.bmm(inner, up).reshape(*x.shape[:-1], -1)


@dataclass(frozen=True)
class Adapter:
    """One slot's view of all its sites: leaf parameters that share memory with the `SlotLinear` layers.

    An ordinary optimizer steps them, so a lane has exactly the arithmetic of a solo run.
    """

    ranks: Mapping[str, int]
    """part -> rank"""
    alphas: Mapping[str, float]
    """part -> alpha"""
    down: Mapping[str, nn.Parameter]
    """'part.site' -> [r, in]"""
    up: Mapping[str, nn.Parameter]
    """'part.site' -> [r, out]"""

    def parameters(self, part: str) -> list[nn.Parameter]:
        """Parameters of a part; empty if the lane does not adapt it."""
        return [
            parameter
            for views in (self.down, self.up)
            for name, parameter in views.items()
            if name.startswith(f"{part}.")
        ]

    def state(self) -> dict[str, Tensor]:
        """A copy of every parameter, on the CPU."""
        views = {f"{name}.down": value for name, value in self.down.items()}
        views |= {f"{name}.up": value for name, value in self.up.items()}
        return {name: value.detach().cpu().clone() for name, value in views.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Set every parameter from what `state` gave."""
        for kind, views in (("down", self.down), ("up", self.up)):
            for name, parameter in views.items():
                parameter.copy_(state[f"{name}.{kind}"])


class AdapterSlots:
    """K slots of adapters, put into a base model and taken out again by a `with` block.

    Args:
        model: the frozen base.
        preset: which sites (see LoraConfig.sites).
        slots: K.
        ranks: part -> largest rank of any lane; only the parts named here are touched.
    """

    def __init__(self, model: Model, preset: str, slots: int, ranks: Mapping[str, int]) -> None:
        self.slots = slots
        self.rows = {part: Rows() for part in ranks}
        self._model = model
        self._layers: dict[str, dict[str, SlotLinear]] = {
            part: {
                site: SlotLinear(linear_layer(model.part(part), site), slots, rank, self.rows[part])
                for site in model.sites(part, preset)
            }
            for part, rank in ranks.items()
        }

    def __enter__(self) -> AdapterSlots:
        for part, layers in self._layers.items():
            for site, layer in layers.items():
                put_layer(self._model.part(part), site, layer)
        return self

    def __exit__(self, *_: object) -> None:
        for part, layers in self._layers.items():
            for site, layer in layers.items():
                put_layer(self._model.part(part), site, layer.base)

    @torch.no_grad()
    def open(self, slot: int, ranks: Mapping[str, int], alphas: Mapping[str, float], seed: int) -> Adapter:
        """Start a fresh adapter in a slot: A ~ N(0, 1/r^2), B = 0.

        Every site draws from a generator of its own, so the start does not depend on which other sites or lanes exist.

        Args:
            slot: 0 <= slot < K.
            ranks, alphas: part -> value; the parts this lane adapts.
            seed: of the initial weights.
        """
        down, up = {}, {}
        for part, layers in self._layers.items():
            for site, layer in layers.items():
                for tensor in (layer.down, layer.up):
                    tensor[slot].zero_()
                    if tensor.grad is not None:
                        tensor.grad[slot].zero_()
                if part not in ranks:
                    continue
                rank, name = ranks[part], f"{part}.{site}"
                layer.scale[slot] = alphas[part] / rank
                generator = torch.Generator().manual_seed(seed_of(seed, "init", name))
                start = torch.randn(rank, layer.base.in_features, generator=generator) / rank
                layer.down[slot, :rank] = start.to(layer.down.device)
                down[name] = _view(layer.down, slot, rank)
                up[name] = _view(layer.up, slot, rank)
        return Adapter(dict(ranks), dict(alphas), down, up)


def _view(stacked: nn.Parameter, slot: int, rank: int) -> nn.Parameter:
    """A leaf parameter over a slot's part of a stacked one, gradient included."""
    assert stacked.grad is not None
    parameter = nn.Parameter(stacked.data[slot, :rank])
    parameter.grad = stacked.grad[slot, :rank]
    return parameter


def save(path: Path, adapter: Adapter, model: Model, provenance: Mapping[str, Any]) -> None:
    """Write an adapter in the format that diffusers' `load_lora_weights` reads, atomically.

    Args:
        path: a .safetensors file.
        provenance: JSON-like; goes into the file's metadata under 'dbexp'.
    """
    weights = {
        name: (down.detach().cpu().contiguous(), adapter.up[name].detach().cpu().T.contiguous())
        for name, down in adapter.down.items()
    }
    write(LoraFile(weights, adapter.alphas, provenance), path, model)


def parameter_count(adapter: Adapter) -> dict[str, int]:
    """Trained parameters of each part."""
    return {part: sum(math.prod(p.shape) for p in adapter.parameters(part)) for part in adapter.ranks}
