"""Base models without weights: a pipeline folder of configurations alone, and parts that a pretended card holds."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.estimate.card import PretendedCard
from dbexp.estimate.published import Published, Settings
from dbexp.models import random_mistral, random_qwen, random_t5, random_weights
from dbexp.models.checkpoint import Checkpoint, library
from dbexp.models.outline import build

_TOKENIZERS: dict[str, Callable[[Path, int], Any]] = {
    "CLIP": lambda folder, tokens: random_weights.build_tokenizer(folder, random_weights.WORDS, tokens),
    "Mistral": lambda folder, tokens: random_mistral.build_processor(tokens),
    "Qwen": lambda folder, tokens: random_qwen.build_tokenizer(tokens),
    "T5": lambda folder, tokens: random_t5.build_tokenizer(tokens),
}
"""How the name of an encoder's class begins -> a tokenizer for it."""


def write(folder: Path, published: Published, family: str) -> Path:
    """A pipeline folder of a published checkpoint without its weights.

    Args:
        folder: where; made if missing.
        published: its sizes.
        family: a name of `FAMILIES`.

    Returns:
        `folder`.
    """
    kind = _class_of(family)
    for part, settings in published.parts.items():
        _write_part(folder / part, kind.classes[part], settings)
    _write(folder / "scheduler" / "scheduler_config.json", published.scheduler)
    _write(folder / "model_index.json", published.index)
    for encoder in FAMILIES[family].encoders:
        path, cls = folder / encoder.replace("text_encoder", "tokenizer"), kind.classes[encoder].split(".")[1]
        (tokenizer,) = (make for start, make in _TOKENIZERS.items() if cls.startswith(start))
        tokenizer(path, published.tokens).save_pretrained(path)
    return folder


def _class_of(family: str) -> type[Checkpoint]:
    """The class of a family's checkpoints."""
    module = importlib.import_module(FAMILIES[family].module)
    return next(
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Checkpoint)
        and getattr(value, "family", None) == FAMILIES[family]
    )


def _write_part(folder: Path, name: str, settings: Settings) -> None:
    """A part's whole configuration, and a file of weights that has one number."""
    package, cls = name.split(".")
    made: Any = getattr(library(package), cls)
    if package == "diffusers":
        with torch.device("meta"):
            made.from_config(dict(settings)).save_config(folder)
    else:
        made.config_class(**settings).save_pretrained(folder)
    weights = "diffusion_pytorch_model" if package == "diffusers" else "model"
    safetensors.torch.save_file({"none": torch.zeros(1)}, folder / f"{weights}.safetensors")


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


@contextmanager
def parts_without_weights(card: PretendedCard, quantize: str | None = None) -> Iterator[None]:
    """Inside the block base models have parts of the right shapes on a card, whose weights nobody reads.

    Args:
        card: the pretended one, which must be in use.
        quantize: nf4: linear layers take 4 bits a weight, without the library that packs them.
    """

    def read(cls: Any, folder: Path, *, dtype: torch.dtype, **_: Any) -> nn.Module:
        with card.paused(), torch.device("meta"):
            module: nn.Module = nn.Module.to(build(cls, folder), dtype)  # diffusers' own warns
            kept = set(getattr(cls, "_keep_in_fp32_modules", None) or ()) if hasattr(cls, "load_config") else set()
            for name, part in module.named_modules():  # as diffusers keeps them when it loads weights
                if not kept.isdisjoint(name.split(".")):
                    nn.Module.to(part, torch.float32)
        if quantize == "nf4" and folder.name in {family.denoiser for family in FAMILIES.values()}:
            _pack(module)
        _fill(module, {})
        return module.eval()

    outline = Checkpoint.outline

    def drawn(checkpoint: Checkpoint, part: str) -> nn.Module:
        with card.paused():  # it is of meta tensors, and takes no memory
            return outline(checkpoint, part)

    with patch.object(Checkpoint, "read", staticmethod(read)), patch.object(Checkpoint, "outline", drawn):
        yield


def _fill(module: nn.Module, made: dict[int, Tensor]) -> None:
    """Put tensors of the card in the place of those that were never made; what is shared stays shared."""
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        value = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                        made[id(tensor)] = (
                            nn.Parameter(value, requires_grad=False) if table is part._parameters else value
                        )
                    table[name] = made[id(tensor)]  # type: ignore[assignment]  # of the kind that was there


class PackedLinear(nn.Linear):
    """What bitsandbytes makes of a frozen layer (Dettmers et al., arXiv 2305.14314), as far as its size and its
    operations go: two weights a byte and a scale for 64 of them, unpacked for each product."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.bias = layer.in_features, layer.out_features, layer.bias
        self.precision, count = layer.weight.dtype, layer.weight.numel()
        with torch.device("meta"):
            self.register_buffer("weight", torch.empty(-(-count // 2), dtype=torch.uint8))
            self.register_buffer("scales", torch.empty(-(-count // 64), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]"""
        y: Tensor = _Product.apply(x, self.weight, self.bias, self.out_features, self.precision)
        return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, out: int, precision: torch.dtype) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape = out, x.shape[-1]
        unpacked = weight.new_empty(ctx.shape, dtype=precision)
        return nn.functional.linear(x, unpacked, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = gradients
        unpacked = ctx.saved_tensors[0].new_empty(ctx.shape, dtype=gradient.dtype)
        return gradient @ unpacked, None, None, None, None


def _pack(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child))
        else:
            _pack(child)
