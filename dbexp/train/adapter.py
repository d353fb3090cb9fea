"""LoRA (Hu et al., arXiv 2106.09685): K adapters side by side on one frozen base, and the files they are saved in.

A site is one linear layer of the base. Shapes: K slots, R the largest rank of any of them, N rows of a batch,
`in` and `out` the site's widths. A slot of smaller rank r uses the first r rows; the rest is zero and stays zero.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dbexp.core.errors import ConfigError
from dbexp.core.store import key_of, write_atomic
from dbexp.models import Model
from dbexp.train.rows import Rows

PARTS = ("unet", "text_encoder")


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
        inner = torch.bmm(lanes, self.down[first:last].transpose(1, 2)) * self.scale[first:last]
        return torch.bmm(inner, self.up[first:last]).reshape(*x.shape[:-1], -1)


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
                site: SlotLinear(_linear(model.part(part), site), slots, rank, self.rows[part])
                for site in model.sites(part, preset)
            }
            for part, rank in ranks.items()
        }

    def __enter__(self) -> AdapterSlots:
        for part, layers in self._layers.items():
            for site, layer in layers.items():
                _put(self._model.part(part), site, layer)
        return self

    def __exit__(self, *_: object) -> None:
        for part, layers in self._layers.items():
            for site, layer in layers.items():
                _put(self._model.part(part), site, layer.base)

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


def seed_of(seed: int, *names: str | int) -> int:
    """A 60-bit seed for one named stream of randomness: different names never share a sequence."""
    return int(key_of({"seed": seed, "names": list(names)})[:15], 16)


def _linear(module: nn.Module, site: str) -> nn.Linear:
    layer = module.get_submodule(site)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{site} is a {type(layer).__name__}, not a linear layer")
    return layer


def _put(module: nn.Module, site: str, layer: nn.Module) -> None:
    parent, _, name = site.rpartition(".")
    setattr(module.get_submodule(parent) if parent else module, name, layer)


# -- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds: the adapter of every site, and what is said about it."""

    weights: Mapping[str, tuple[Tensor, Tensor]]
    """'part.site' -> (down [r, in], up [out, r])"""
    alphas: Mapping[str, float]
    """part -> alpha"""
    provenance: Mapping[str, Any]


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
    export_diffusers(LoraFile(weights, adapter.alphas, provenance), path, model)


def export_diffusers(file: LoraFile, target: Path, model: Model) -> None:
    """Write a LoRA under the names that diffusers' `load_lora_weights` reads, atomically; `read` reads it again."""
    tensors: dict[str, Tensor] = {}
    sites: dict[str, list[str]] = {part: [] for part in file.alphas}
    ranks: dict[str, int] = {}
    for name, (down, up) in file.weights.items():
        part, _, site = name.partition(".")
        sites[part].append(site)
        ranks[part] = down.shape[0]
        key = f"{part}.{model.saved_site(part, site)}"
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down, up
    described: dict[str, Any] = {}
    for part, rank in ranks.items():
        described |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": file.alphas[part],
            f"{part}.target_modules": sorted(sites[part]),
            f"{part}.peft_type": "LORA",
        }
    metadata = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps(described, sort_keys=True),
        "dbexp": json.dumps(dict(file.provenance), sort_keys=True),
    }
    write_atomic(target, _stable_bytes(tensors, metadata))


def _stable_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file that is the same, byte for byte, whenever its content is.

    The library writes the metadata in an order that changes from call to call; the store knows files by their hash.
    """
    data = safetensors.torch.save(dict(tensors), dict(metadata))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format aligns what follows, and allows spaces here
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def read(path: Path, model: Model) -> LoraFile:
    """Read a file that `save` wrote.

    Raises:
        FileNotFoundError: it is missing.
        ConfigError: it is damaged or of another origin.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping, despite the name
        described = json.loads(metadata["lora_adapter_metadata"])
        provenance = json.loads(metadata["dbexp"])
        alphas = {part: float(described[f"{part}.lora_alpha"]) for part in PARTS if f"{part}.lora_alpha" in described}
        weights = {}
        for part in alphas:
            for site in described[f"{part}.target_modules"]:
                key = f"{part}.{model.saved_site(part, site)}"
                weights[f"{part}.{site}"] = (tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}: is damaged, or no LoRA file that dbexp wrote ({error})") from error
    return LoraFile(weights, alphas, provenance)


def export_kohya(file: LoraFile, target: Path, model: Model) -> None:
    """Write a LoRA under the names that kohya's trainers, ComfyUI and AUTOMATIC1111 use, atomically."""
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in file.weights.items():
        part, _, site = name.partition(".")
        key = f"{model.kohya_prefix(part)}_{model.saved_site(part, site).replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(file.alphas[part])
    metadata = {"format": "pt", "dbexp": json.dumps(dict(file.provenance), sort_keys=True)}
    write_atomic(target, _stable_bytes(tensors, metadata))


@contextlib.contextmanager
def merged(model: Model, path: Path | None, scale: float = 1.0) -> Iterator[None]:
    """Inside the block the base weights are W + scale * alpha / r * B A; after it they are W again, bit for bit.

    Merging once costs less than an adapter's products at every sampling step.

    Args:
        model: the base.
        path: a file that `save` wrote; None: the block sees the base itself.
        scale: strength of the LoRA.

    Raises:
        ConfigError: the file is damaged, or was trained on a base of another architecture.
    """
    if path is None:
        yield
        return
    file = read(path, model)
    originals: list[tuple[nn.Linear, Tensor]] = []
    try:
        with torch.no_grad():
            for name, (down, up) in file.weights.items():
                part, _, site = name.partition(".")
                layer = _fitting(model, part, site, (up.shape[0], down.shape[1]), path)
                originals.append((layer, layer.weight.detach().clone()))
                strength = scale * file.alphas[part] / down.shape[0]
                update = strength * (up.to(layer.weight.device) @ down.to(layer.weight.device))
                layer.weight.copy_(layer.weight.float() + update)
        yield
    finally:
        with torch.no_grad():
            for layer, weight in originals:
                layer.weight.copy_(weight)


def _fitting(model: Model, part: str, site: str, shape: tuple[int, int], path: Path) -> nn.Linear:
    """The layer that an adapter of shape [out, in] belongs to."""
    try:
        layer = _linear(model.part(part), site)
    except (AttributeError, TypeError):
        raise ConfigError(
            f"{path}: does not fit the model {model.name}, which has no linear layer {part}.{site}"
        ) from None
    if tuple(layer.weight.shape) != shape:
        found = " x ".join(map(str, layer.weight.shape))
        raise ConfigError(
            f"{path}: does not fit the model {model.name}: {part}.{site} is {found} there, {shape[0]} x {shape[1]} here"
        )
    return layer


def parameter_count(adapter: Adapter) -> dict[str, int]:
    """Trained parameters of each part."""
    return {part: sum(math.prod(p.shape) for p in adapter.parameters(part)) for part in adapter.ranks}
