"""The file of a LoRA: written, read, exported under other names, and merged into a base.

Shapes: r the rank, `in` and `out` the widths of a site, which is one linear layer of the base.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dbexp.core.errors import ConfigError, first_line
from dbexp.core.files import write_atomic
from dbexp.models import LoraFile, Model
from dbexp.models.outline import is_layer, width_of

Layer: TypeAlias = nn.Linear | nn.Conv2d
"""What a LoRA adapts."""


def write(file: LoraFile, target: Path, model: Model, format: str | None = None) -> None:
    """Write a LoRA, atomically.

    Args:
        target: a .safetensors file.
        format: one of the formats of the model's family; None: that of the store, which `read` reads. diffusers'
            `load_lora_weights` reads it too.
    """
    tensors, metadata = diffusers_layout(file, model.saved_site) if format is None else model.export(file, format)
    record = {"format": "pt", "dbexp": json.dumps(dict(file.provenance), sort_keys=True)}
    write_atomic(target, _stable_bytes(tensors, record | metadata))


def diffusers_layout(file: LoraFile, saved_site: Callable[[str, str], str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata under the names that diffusers' `load_lora_weights` reads.

    Args:
        saved_site: (part, site) -> name of the site in files.
    """
    tensors: dict[str, Tensor] = {}
    sites: dict[str, list[str]] = {part: [] for part in file.alphas}
    ranks: dict[str, int] = {}
    for name, (down, up) in file.weights.items():
        part, _, site = name.partition(".")
        sites[part].append(site)
        ranks[part] = down.shape[0]
        key = f"{part}.{saved_site(part, site)}"
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = down, up
    description: dict[str, Any] = {}
    for part, rank in ranks.items():
        description |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": file.alphas[part],
            f"{part}.target_modules": sorted(sites[part]),
            f"{part}.peft_type": "LORA",
        }
    return tensors, {"lora_adapter_metadata": json.dumps(description, sort_keys=True)}


def kohya_layout(
    file: LoraFile, prefixes: Mapping[str, str], saved_site: Callable[[str, str], str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same under the names that kohya's trainers, ComfyUI and AUTOMATIC1111 use.

    Args:
        prefixes: part -> first word of its keys.
        saved_site: (part, site) -> name of the site in files.
    """
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in file.weights.items():
        part, _, site = name.partition(".")
        key = f"{prefixes[part]}_{saved_site(part, site).replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(file.alphas[part])
    return tensors, {}


def native_layout(
    file: LoraFile, part: str, native: Mapping[str, tuple[str, ...]], layers: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same under the names of the original checkpoint, where layers of a model may be one: its rank is then the sum
    of theirs, and alpha grows with it.

    Args:
        part: the only one that the file adapts.
        native, layers: of the model.
    """
    tensors: dict[str, Tensor] = {}
    fused = {site for sites in native.values() for site in sites}
    names = {**native, **{site: (site,) for site in layers if site not in fused}}
    for name, sites in names.items():
        pairs = [file.weights.get(f"{part}.{site}") for site in sites]
        members = [pair for pair in pairs if pair is not None]
        if not members:
            continue
        ups = [
            torch.zeros(layers[site][0], 0) if pair is None else pair[1]
            for site, pair in zip(sites, pairs, strict=True)
        ]
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = torch.cat([down for down, _ in members])
        tensors[f"{key}.lora_up.weight"] = torch.block_diag(*ups)
        tensors[f"{key}.alpha"] = torch.tensor(file.alphas[part] * len(members))
    return tensors, {}


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
    """Read a file that `write` wrote.

    Returns:
        Weights in fp32, finite, of one rank a part.

    Raises:
        FileNotFoundError: it is missing.
        ConfigError: it is damaged or of another origin.
    """
    if path.exists() and not path.is_file():
        raise ConfigError(f"{path}: is no file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping, despite the name
        description = json.loads(metadata["lora_adapter_metadata"])
        provenance = json.loads(metadata["dbexp"])
        if not isinstance(description, dict) or not isinstance(provenance, dict):
            raise ValueError("its metadata are no records")
        parts = [part for part in model.family.parts if f"{part}.lora_alpha" in description]
        alphas = {part: _alpha(description[f"{part}.lora_alpha"]) for part in parts}
        weights = {}
        for part in alphas:
            for site in description[f"{part}.target_modules"]:
                key = f"{part}.{model.saved_site(part, site)}"
                pair = (tensors.pop(f"{key}.lora_A.weight"), tensors.pop(f"{key}.lora_B.weight"))
                weights[f"{part}.{site}"] = _checked(key, pair, description[f"{part}.r"])
        if tensors or not weights:
            raise ValueError(f"it has {next(iter(tensors), 'nothing')}, of which its metadata know nothing")
    except KeyError as error:
        raise _unfit(path, f"it lacks {error}") from error
    except (SafetensorError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise _unfit(path, first_line(error)) from error
    return LoraFile(weights, alphas, provenance)


def _unfit(path: Path, reason: str) -> ConfigError:
    return ConfigError(f"{path}: is damaged, or no LoRA file that dbexp wrote ({reason})")


def _alpha(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"alpha is {value!r:.40}, which is no number")
    return float(value)


def _checked(site: str, pair: tuple[Tensor, Tensor], rank: object) -> tuple[Tensor, Tensor]:
    """Both matrices of a site, [r, in] and [out, r], in fp32."""
    down, up = pair
    shapes = f"{[*down.shape]} and {[*up.shape]}"
    if not (down.ndim == up.ndim == 2) or not 0 < down.shape[0] == up.shape[1] == rank or isinstance(rank, bool):
        raise ValueError(f"the shapes of {site}, {shapes}, are not those of rank {rank!r:.40}")
    if not {down.dtype, up.dtype} <= {torch.float32, torch.float16, torch.bfloat16}:
        raise ValueError(f"{site} is of {down.dtype} and {up.dtype}")
    if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
        raise ValueError(f"{site} has weights that are NaN or infinite")
    return down.float(), up.float()


@contextlib.contextmanager
def merged(
    model: Model,
    path: Path | None,
    scale: float = 1.0,
    parts: Collection[str] | None = None,
    *,
    originals_on: torch.device | None = None,
) -> Iterator[None]:
    """Inside the block the base weights are W + scale * alpha / r * B A; after it they are W again, bit for bit.

    Merging once costs less than an adapter's products at every sampling step.

    Args:
        model: the base.
        path: a file that `write` wrote; None: the block sees the base itself.
        scale: strength of the LoRA.
        parts: those to change; None: all that the file adapts.
        originals_on: where W is kept meanwhile; None: beside it.

    Raises:
        ConfigError: the file is damaged, or was trained on a base of another architecture; or the base is quantised,
            for which there is `dbexp.models.beside`.
    """
    if path is None:
        yield
        return
    file = read(path, model)
    changed = {part for part in file.alphas if parts is None or part in parts}
    if model.quantize is not None and model.family.denoiser in changed:
        raise ConfigError(
            f"model.quantize={model.quantize}: {path} cannot be merged into weights so coarse, which would round it "
            "away; give null"
        )
    originals: list[tuple[Layer, Tensor]] = []
    try:
        with torch.no_grad():
            for name, (down, up) in file.weights.items():
                part, _, site = name.partition(".")
                if part not in changed:
                    continue
                layer = fitting_layer(model, part, site, (up.shape[0], down.shape[1]), path)
                originals.append((layer, layer.weight.detach().to(originals_on or layer.weight.device, copy=True)))
                add_update(layer, scale * file.alphas[part] / down.shape[0], down, up)
        yield
    finally:
        with torch.no_grad():
            for layer, weight in originals:
                layer.weight.copy_(weight)


def add_update(layer: Layer, strength: float, down: Tensor, up: Tensor) -> None:
    """W becomes W + strength * B A; of a convolution, whose weight [out, in, height, width] is looked at as a matrix,
    too."""
    update = strength * (up.to(layer.weight.device) @ down.to(layer.weight.device))
    layer.weight.copy_(layer.weight.float() + update.view(layer.weight.shape))


def require_fit(file: LoraFile, model: Model, path: Path) -> None:
    """Hold every adapter of a file to the layer that it belongs to.

    Args:
        file: read from `path`.
        model: whose layers these are; parts that the file adapts are loaded for it.

    Raises:
        ConfigError: a layer is missing, or of another shape.
    """
    for name, (down, up) in file.weights.items():
        part, _, site = name.partition(".")
        fitting_layer(model, part, site, (up.shape[0], down.shape[1]), path)


def convolutions(file: LoraFile, model: Model) -> list[str]:
    """Names of the adapters that belong to convolutions."""
    places = [name.partition(".") for name in file.weights]
    return [f"{part}.{site}" for part, _, site in places if isinstance(model.part(part).get_submodule(site), nn.Conv2d)]


def fitting_layer(model: Model, part: str, site: str, shape: tuple[int, int], path: Path) -> Layer:
    """The layer that an adapter of shape [out, in], read from `path`, belongs to.

    Raises:
        ConfigError: there is none, or it is of another shape.
    """
    try:
        layer: Any = model.part(part).get_submodule(place_of(model.part(part), site))
    except AttributeError:
        layer = None
    if layer is None or not is_layer(layer):
        raise ConfigError(
            f"{path}: does not fit the model {model.name}, which has no layer {part}.{site} that a LoRA adapts"
        )
    out, width = width_of(layer)
    if (out, width) != shape:
        raise ConfigError(
            f"{path}: does not fit the model {model.name}: {part}.{site} is {out} x {width} there, "
            f"{shape[0]} x {shape[1]} here"
        )
    fitting: Layer = layer
    return fitting


def place_of(module: nn.Module, site: str) -> str:
    """Where the layer of a name stands now: adapters of training, or a LoRA beside it, may have taken its place.

    Raises:
        AttributeError: there is none.
    """
    layer: Any = module.get_submodule(site)
    while not is_layer(layer) and isinstance(getattr(layer, "base", None), nn.Module):
        site, layer = f"{site}.base", layer.base
    return site


def linear_layer(module: nn.Module, site: str) -> nn.Linear:
    """The linear layer of a name; TypeError: it is of another kind; AttributeError: there is none."""
    layer = module.get_submodule(site)
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"{site} is a {type(layer).__name__}, not a linear layer")
    return layer


def put_layer(module: nn.Module, site: str, layer: nn.Module) -> None:
    """Let a layer stand where the one of a name stood."""
    parent, _, name = site.rpartition(".")
    setattr(module.get_submodule(parent) if parent else module, name, layer)
