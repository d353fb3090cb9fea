"""LoRA (Hu et al., arXiv 2106.09685): K adapters side by side on one frozen base.

A site is one linear layer of the base. Shapes: K slots, R the largest rank of any of them, r the rank of one, `in` and
`out` the site's widths.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dbexp.core.hashing import seed_of
from dbexp.models import LoraFile, Model
from dbexp.models.lora_file import linear_layer, put_layer, write
from dbexp.train.site import Rows, SlotLinear
from dbexp.train.stack import Stack


@dataclass(frozen=True)
class Adapter:
    """One slot's view of all its sites, as leaf parameters that share memory with the stacks, gradients included: an
    ordinary optimizer can step them."""

    slot: int
    ranks: Mapping[str, int]
    """part -> rank"""
    alphas: Mapping[str, float]
    """part -> alpha"""
    stacks: Mapping[str, Stack]
    """part -> stack, of every part that any slot adapts."""
    rows: Mapping[str, nn.Parameter]
    """part -> all that is trained of it, [P]; the parts that this slot adapts."""
    down: Mapping[str, nn.Parameter]
    """'part.site' -> [r, in]"""
    up: Mapping[str, nn.Parameter]
    """'part.site' -> [r, out]"""

    def parameters(self, part: str) -> list[nn.Parameter]:
        """Parameters of a part, A of every site and then B of every site; empty if the lane does not adapt it."""
        return [
            parameter
            for views in (self.down, self.up)
            for name, parameter in views.items()
            if name.startswith(f"{part}.")
        ]

    @property
    def gradients(self) -> list[Tensor]:
        """The slot's gradients, [P] of each part that any slot adapts; zero where this one does not."""
        return [stack.gradients[self.slot] for stack in self.stacks.values()]

    def views(self, part: str, row: Tensor) -> list[Tensor]:
        """The same as views of a tensor [P] that is laid out like the part's row."""
        rank, pairs = self.ranks[part], self.stacks[part].sites(row).values()
        return [down[:rank] for down, _ in pairs] + [up[:rank] for _, up in pairs]

    def _names(self, part: str) -> list[str]:
        return [f"{part}.{site}.{kind}" for kind in ("down", "up") for site in self.stacks[part].widths]

    def state(self) -> dict[str, Tensor]:
        """A copy of every parameter, on the CPU."""
        state: dict[str, Tensor] = {}
        for part, row in self.rows.items():
            state |= zip(self._names(part), self.views(part, host_copy(row)), strict=True)
        return state

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Set every parameter from what `state` gave."""
        for part, row in self.rows.items():
            values = host_copy(row)
            for view, name in zip(self.views(part, values), self._names(part), strict=True):
                view.copy_(state[name])
            row.copy_(values)


def host_copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU, of what is on a device in one go."""
    return tensor.detach().to("cpu", copy=True)


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
        self.stacks: dict[str, Stack] = {}
        self._model = model
        self._layers: dict[str, dict[str, SlotLinear]] = {}
        for part, rank in ranks.items():
            layers = {site: linear_layer(model.part(part), site) for site in model.sites(part, preset)}
            widths = {site: (layer.in_features, layer.out_features) for site, layer in layers.items()}
            device = next(model.part(part).parameters()).device
            stack = self.stacks[part] = Stack(widths, slots, rank, device, model.dtype)
            self._layers[part] = {
                site: SlotLinear(layer, stack, site, self.rows[part]) for site, layer in layers.items()
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
    def open(
        self,
        slot: int,
        ranks: Mapping[str, int],
        alphas: Mapping[str, float],
        seed: int,
        begin: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> Adapter:
        """Start an adapter in a slot: A ~ N(0, 1/r^2), B = 0, or from adapters that there are.

        Every site draws from a generator of its own, so the start does not depend on which other sites or lanes exist.

        Args:
            slot: 0 <= slot < K.
            ranks, alphas: part -> value; the parts this lane adapts.
            seed: of the initial weights.
            begin: 'part.site' -> A [s, in], B [out, s] of the update B A to begin with; a rank s below r leaves the
                rest fresh, and so does a site that is not there.
        """
        rows: dict[str, nn.Parameter] = {}
        sites: dict[str, dict[str, nn.Parameter]] = {"down": {}, "up": {}}
        for part, stack in self.stacks.items():
            stack.clear(slot)
            if part not in ranks:
                continue
            rank = ranks[part]
            stack.scale[slot] = alphas[part] / rank
            start = torch.zeros(stack.weights.shape[1])
            for site, (down, up) in stack.sites(start).items():
                generator = torch.Generator().manual_seed(seed_of(seed, "init", f"{part}.{site}"))
                down[:rank] = torch.randn(rank, down.shape[-1], generator=generator) / rank
                if begin is not None and (pair := begin.get(f"{part}.{site}")) is not None:
                    down[: len(pair[0])] = pair[0]
                    up[: len(pair[0])] = pair[1].T * (rank / alphas[part])
            stack.weights[slot].copy_(start)
            rows[part] = _leaf(stack.weights[slot], stack.gradients[slot])
            weights, gradients = (stack.sites(tensor[slot]) for tensor in (stack.weights, stack.gradients))
            for site, pair in weights.items():
                for kind, weight, gradient in zip(sites, pair, gradients[site], strict=True):
                    sites[kind][f"{part}.{site}"] = _leaf(weight[:rank], gradient[:rank])
        return Adapter(slot, dict(ranks), dict(alphas), self.stacks, rows, **sites)

    def refresh(self) -> None:
        """Before a pass: let it see the weights as they are now."""
        for stack in self.stacks.values():
            stack.refresh()

    def gather(self) -> None:
        """After a backward pass: add its gradients to those of the adapters."""
        for stack in self.stacks.values():
            stack.gather()


def _leaf(view: Tensor, gradient: Tensor) -> nn.Parameter:
    """A leaf parameter over a view, whose gradient is another."""
    parameter = nn.Parameter(view)
    parameter.grad = gradient
    return parameter


def save(path: Path, adapter: Adapter, model: Model, provenance: Mapping[str, Any]) -> None:
    """Write an adapter in the format that diffusers' `load_lora_weights` reads, atomically.

    Args:
        path: a .safetensors file.
        provenance: JSON-like; goes into the file's metadata under 'dbexp'.
    """
    state = adapter.state()
    exact = {"memory_format": torch.contiguous_format}
    weights = {name: (state[f"{name}.down"].clone(), state[f"{name}.up"].T.clone(**exact)) for name in adapter.down}
    write(LoraFile(weights, adapter.alphas, provenance), path, model)


def parameter_count(adapter: Adapter) -> dict[str, int]:
    """Trained parameters of each part."""
    return {part: sum(math.prod(p.shape) for p in adapter.parameters(part)) for part in adapter.ranks}
