"""A LoRA file of any trainer, read into the sites of a model.

Every key is read or refused by name. A layer that is several here (q, k and v in one) is parted exactly: they share A,
and each has its rows of B. Ranks and scales that differ from layer to layer become one of each part: B takes the
difference of scales, and smaller ranks are filled up with zeros, which change nothing.

Shapes: r the rank of a layer, `in` and `out` its widths; of a convolution `in` counts a whole patch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dbexp.core.errors import ConfigError, count, first_line, listed, shown
from dbexp.models import LoraFile, Model, files
from dbexp.models.foreign_names import ALPHA, DOWN, UP, Layers, of_text_encoder, other_method, parse

_DTYPES = ("F64", "F32", "F16", "BF16")
_MOST_RANK = 16_384
_LONGEST_PATTERN, _MOST_REPEATS = 200, 2
_SHOWN = 3
"""Keys that a message names."""


def read(path: Path, model: Model, field: str) -> LoraFile:
    """Read a LoRA file of any trainer.

    Args:
        path: a .safetensors file.
        model: whose layers these are.
        field: of the settings that name the file.

    Returns:
        Finite weights in fp32, of one rank and one alpha a part, without provenance.

    Raises:
        ConfigError: with everything that cannot be read, or does not fit.
    """
    try:
        head = files.head(path)
    except ValueError as error:
        raise ConfigError(f"{field}={path}: {first_line(error)}; give a whole .safetensors file of a LoRA") from None
    return _Reading(f"{field}={path}", model, head).file(path)


def config_beside(path: Path) -> Path | None:
    """Where PEFT keeps rank and alpha of a file that has neither."""
    config = path.with_name("adapter_config.json")
    return config if path.name == "adapter_model.safetensors" and config.is_file() else None


@dataclass(frozen=True)
class _Pair:
    """What a file says of a layer: names of its tensors."""

    down: str
    up: str
    alpha: str | None


@dataclass(frozen=True)
class _Adapter:
    """The adapter of a layer: W + alpha / r * B A."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


class _Reading:
    """A file on its way.

    Args:
        label: of messages.
        model: whose layers these are.
        head: what the file says of its tensors.
    """

    def __init__(self, label: str, model: Model, head: Mapping[str, Any]) -> None:
        self.label, self.model = label, model
        metadata = head.get("__metadata__")
        self.metadata = metadata if isinstance(metadata, dict) else {}
        self.entries = {key: entry for key, entry in head.items() if key != "__metadata__"}
        self._known: dict[str, Mapping[str, tuple[int, int]]] = {}
        self.problems: dict[str, list[str]] = {}
        """What is wrong -> the keys of which it is."""

    def file(self, path: Path) -> LoraFile:
        """All of it; raises as `read` does."""
        pairs = self._pairs()
        places = self._places(pairs)
        self._raise_if_any(len(pairs))
        adapters: dict[str, _Adapter] = {}
        describe = _Described(self.metadata, config_beside(path), self.label)
        try:
            with safe_open(path, framework="pt") as tensors:
                for name, (part, sites) in places.items():
                    pair = pairs[name]
                    down, up = (tensors.get_tensor(key).float().flatten(1) for key in (pair.down, pair.up))
                    alpha = None if pair.alpha is None else float(tensors.get_tensor(pair.alpha))
                    rows = up.split([self._layers(part)[site][0] for site in sites])
                    changes = bool(up.any())
                    for site, piece in zip(sites, rows, strict=True):
                        if changes and not piece.any():
                            continue  # of layers in one some may have no adapter, and then have rows of zeros
                        scaled = describe.alpha(part, site, down.shape[0]) if alpha is None else alpha
                        adapter = _Adapter(down.clone(), piece.clone(), scaled)  # a file shares no memory
                        self._keep(adapters, f"{part}.{site}", adapter, pair, len(sites) > 1)
        except (SafetensorError, ValueError, RuntimeError, OverflowError) as error:
            raise ConfigError(f"{self.label}: is damaged ({first_line(error)})") from None
        if not adapters:
            self._note(
                "numbers that are all 0; give a file of a training that learnt something", *list(self.entries)[:1]
            )
        self._raise_if_any(len(pairs))
        return _one_rank(adapters, self._order(adapters))

    def _layers(self, part: str) -> Mapping[str, tuple[int, int]]:
        """Those of the model, looked up once: a file may have thousands."""
        if part not in self._known:
            self._known[part] = self.model.layers(part)
        return self._known[part]

    # -- names ------------------------------------------------------------------------------------------------------

    def _pairs(self) -> dict[str, _Pair]:
        """Name of a layer in the file -> its tensors."""
        kinds: dict[str, dict[str, str]] = {}
        for key in self.entries:
            parsed = parse(key)
            if parsed is None:
                method = other_method(key)
                self._note(f"{method}, which is not read; give a LoRA without it" if method else _UNKNOWN, key)
            elif parsed.kind in kinds.setdefault(parsed.name, {}):
                self._note("a layer has several adapters; give a file with one", key)
            else:
                kinds[parsed.name][parsed.kind] = key
        if not any({DOWN, UP} & kind.keys() for kind in kinds.values()) and _UNKNOWN in self.problems:
            raise ConfigError(
                f"{self.label}: holds no LoRA ({listed(list(self.entries), _SHOWN)}); give a file with matrices lora_A "
                "and lora_B, or lora_down and lora_up (a whole checkpoint is model.path=FILE)"
            )
        pairs = {}
        for name, kind in kinds.items():
            if DOWN in kind and UP in kind:
                pairs[name] = _Pair(kind[DOWN], kind[UP], kind.get(ALPHA))
            else:
                self._note("the other half of a LoRA's two matrices is missing; give the whole file", *kind.values())
        return pairs

    def _places(self, pairs: Mapping[str, _Pair]) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Name of a layer in the file -> (part, its layers here), of those that fit."""
        layers, places, taken = Layers(self.model), {}, dict[str, str]()
        for name, pair in pairs.items():
            place = layers.of(name)
            if place is None:
                self._note(self._no_layer(name), pair.down)
                continue
            part, sites = place
            for site in sites:
                if taken.setdefault(f"{part}.{site}", name) != name:
                    self._note(f"{part}.{site} has two adapters; give a file with one", pair.down)
            if self._fits(pair, part, sites):
                places[name] = place
        return places

    def _no_layer(self, name: str) -> str:
        family = self.model.family
        if not of_text_encoder(name):
            return _ABSENT
        has = f"only {listed(family.text_parts)} can be adapted" if family.text_parts else "none can be adapted"
        return f"a text encoder's layer, where of {family.title} {has}; give a LoRA without it"

    def _fits(self, pair: _Pair, part: str, sites: tuple[str, ...]) -> bool:
        """Whether the shapes are those of the layers."""
        down, up = (self.entries[key] for key in (pair.down, pair.up))
        keys = [key for key in (pair.down, pair.up, pair.alpha) if key is not None]
        if odd := [key for key in keys if self.entries[key]["dtype"] not in _DTYPES]:
            self._note(f"numbers of {self.entries[odd[0]]['dtype']}, where {', '.join(_DTYPES)} are read", *odd)
            return False
        widths = [self._layers(part)[site] for site in sites]
        out, width = sum(out for out, _ in widths), widths[0][1]
        a, b = down["shape"], up["shape"]
        rank = a[0] if a else 0
        fit = len(a) in (2, 4) and len(b) in (2, 4) and math.prod(a[1:]) == width and b[:2] == [out, rank]
        if not fit or math.prod(b) != out * rank or not 0 < rank <= _MOST_RANK:
            self._note(f"shapes {a} and {b} fit no layer of {out} x {width}, as {part}.{sites[0]} is", pair.down)
        elif pair.alpha is not None and math.prod(self.entries[pair.alpha]["shape"]) != 1:
            self._note("alpha is no single number", pair.alpha)
        else:
            return True
        return False

    # -- values -----------------------------------------------------------------------------------------------------

    def _keep(self, adapters: dict[str, _Adapter], site: str, adapter: _Adapter, pair: _Pair, fused: bool) -> None:
        values = (adapter.down, adapter.up)
        if not math.isfinite(adapter.alpha) or not all(bool(torch.isfinite(value).all()) for value in values):
            self._note("numbers that are NaN or infinite; give a file of a training that did not diverge", pair.down)
            return
        # where several were joined in a diagonal of blocks, each needs its own rows of A alone
        used = adapter.up.any(0) if fused else torch.ones(adapter.rank, dtype=torch.bool)
        if used.all():
            adapters[site] = adapter
        elif used.any():  # else nobody adapts this one of them, and zeros stand in its place
            kept = int(used.sum())
            share = adapter.alpha * kept / adapter.rank
            adapters[site] = _Adapter(adapter.down[used], adapter.up[:, used], share)

    def _order(self, adapters: Mapping[str, _Adapter]) -> list[str]:
        """The sites in the order of the model."""
        parts = dict.fromkeys(name.partition(".")[0] for name in adapters)
        names = (f"{part}.{site}" for part in self.model.family.parts if part in parts for site in self._layers(part))
        return [name for name in names if name in adapters]

    # -- problems ---------------------------------------------------------------------------------------------------

    def _note(self, problem: str, *keys: str) -> None:
        self.problems.setdefault(problem, []).extend(keys)

    def _raise_if_any(self, layers: int) -> None:
        absent = self.problems.get(_ABSENT, [])
        if layers and len(absent) == layers:
            said = next((self.metadata[name] for name in _ORIGINS if self.metadata.get(name)), None)
            origin = f", and it says that it is for {shown(said, 60)}" if said else ""
            raise ConfigError(
                f"{self.label}: is a LoRA of another architecture than {self.model.name}, which has none of its "
                f"{count(layers, 'layer')} ({listed(absent, _SHOWN)}){origin}; choose the model that it was trained on"
            )
        if self.problems:
            raise ConfigError(
                f"{self.label}: {problem.format(model=self.model.name)} ({listed(keys, _SHOWN)})"
                for problem, keys in self.problems.items()
            )


_UNKNOWN = "keys that no trainer known to dbexp writes; give a LoRA with lora_A and lora_B, or lora_down and lora_up"
_ABSENT = "layers that {model} does not have; choose the model that the LoRA was trained on"
_ORIGINS = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name", "ot_branch")
"""Metadata in which trainers say what a LoRA is for."""


class _Described:
    """What diffusers writes into the metadata of a file: alpha of its parts, and of layers that differ.

    Args:
        metadata: of the file.
        config: the same as PEFT keeps it, in a file beside.
        label: of messages.
    """

    def __init__(self, metadata: Mapping[str, Any], config: Path | None, label: str) -> None:
        self._label, self._beside = label, config is not None
        try:
            text = metadata.get("lora_adapter_metadata", "{}") if config is None else config.read_text(encoding="utf-8")
            said = json.loads(text)
        except (OSError, ValueError, TypeError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise ConfigError(f"{label}: is damaged ({config or 'lora_adapter_metadata'} cannot be read)")
        self._said = said

    def _compiled(self, text: str) -> re.Pattern[str]:
        try:
            return _pattern(text)
        except (ValueError, re.error, RecursionError) as error:
            raise ConfigError(f"{self._label}: is damaged (alpha_pattern: {first_line(error)})") from None

    def _of(self, part: str, field: str) -> Any:
        return self._said.get(field if self._beside else f"{part}.{field}")

    def alpha(self, part: str, site: str, rank: int) -> float:
        """Alpha of a layer of which no tensor tells it; the rank, where nothing does."""
        patterns, alpha = self._of(part, "alpha_pattern"), self._of(part, "lora_alpha")
        alpha = rank if alpha is None else alpha
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            if self._compiled(pattern).fullmatch(site):
                alpha = value
                break
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise ConfigError(f"{self._label}: is damaged (alpha of {part} is {shown(alpha, 40)}, which is no number)")
        # rank-stabilised: alpha / sqrt(r), Kalajdzievski, arXiv 2312.03732
        return float(alpha) * (math.sqrt(rank) if self._of(part, "use_rslora") is True else 1.0)


def _pattern(text: str) -> re.Pattern[str]:
    """What means layers in a pattern of PEFT: all of a name, or its end after a dot.

    Raises:
        ValueError: it is none, or one that takes a stranger's word for how long to look for it.
    """
    if len(text) > _LONGEST_PATTERN or len(re.findall(r"[*+{]", text)) > _MOST_REPEATS or re.search(r"\)[*+{]", text):
        raise ValueError(f"its pattern {shown(text, 60)} is not one that PEFT writes")
    return re.compile(rf"(.*\.)?({text.removeprefix('^')})")


def _one_rank(adapters: Mapping[str, _Adapter], order: list[str]) -> LoraFile:
    """Adapters as dbexp keeps them, with one rank and one alpha for each part."""
    weights: dict[str, tuple[Tensor, Tensor]] = {}
    alphas: dict[str, float] = {}
    for part in dict.fromkeys(name.partition(".")[0] for name in order):
        members = {name: adapters[name] for name in order if name.startswith(f"{part}.")}
        kinds = {(member.rank, member.alpha) for member in members.values()}
        rank = max(member.rank for member in members.values())
        alphas[part] = members[next(iter(members))].alpha if len(kinds) == 1 else float(rank)
        for name, member in members.items():
            down, up = member.down, member.up
            if len(kinds) > 1:
                more = rank - member.rank
                down = torch.cat([down, down.new_zeros(more, down.shape[1])])
                up = torch.cat([up * (member.alpha / member.rank), up.new_zeros(up.shape[0], more)], dim=1)
            weights[name] = down.contiguous(), up.contiguous()
    return LoraFile(weights, alphas, {})
