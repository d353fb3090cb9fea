"""What layers are called in the original checkpoints of a family, whose names ComfyUI and other trainers keep.

Shapes: a layer there may be several here, side by side in the order of its outputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

NativeNames: TypeAlias = Mapping[str, tuple[str, ...]]
"""Layer in the original checkpoint -> the layers here that it consists of; {} stands for a number."""

_IN_RESNETS = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3"}
_IN_RESNETS |= {"conv_shortcut": "skip_connection"}
_IN_UNETS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")


def expand(table: NativeNames, layers: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """A table without {}, for the layers that a model has.

    Args:
        table: of a family.
        layers: names here.
    """
    names, expanded = frozenset(layers), {}
    for native, targets in table.items():
        first = re.compile(re.escape(targets[0]).replace(r"\{\}", r"(\d+)"))
        for match in filter(None, map(first.fullmatch, sorted(names))):
            members = tuple(target.format(*match.groups()) for target in targets)
            if names.issuperset(members):
                expanded[native.format(*match.groups())] = members
    return expanded


def unet_names(layers: Iterable[str], layers_per_block: int) -> dict[str, tuple[str, ...]]:
    """The same for the UNet of Stable Diffusion, whose original counts its blocks through.

    Args:
        layers: names here.
        layers_per_block: of its downward way; the upward way has one more.
    """
    names = list(layers)
    attend = {match[2] for name in names if (match := _BLOCK.match(name)) and match[1] + match[3] == "upattentions"}
    return {native: (name,) for name in names if (native := _in_unet(name, layers_per_block + 1, attend))}


def _in_unet(name: str, stride: int, attend: set[str]) -> str | None:
    """
    Args:
        stride: blocks of the original to a block here.
        attend: numbers of the upward blocks that have attention.
    """
    if name in _IN_UNETS:
        return _IN_UNETS[name]
    if match := _MIDDLE.fullmatch(name):
        kind, number, rest = match.groups()
        return (
            f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(number)}.{_IN_RESNETS[rest]}"
        )
    if not (match := _BLOCK.fullmatch(name)):
        return None
    way, block, kind, layer, rest = match.groups()
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * stride}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{(int(block) + 1) * stride - 1}.{2 if block in attend else 1}.conv"
    place = 0 if kind == "resnets" else 1
    blocks, first = ("input_blocks", 1) if way == "down" else ("output_blocks", 0)
    inner = _IN_RESNETS[rest] if kind == "resnets" else rest
    return f"{blocks}.{first + int(block) * stride + int(layer)}.{place}.{inner}"
