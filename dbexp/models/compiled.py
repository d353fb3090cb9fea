"""The denoiser compiled by torch while it trains or draws: its norms, activations and sums in few kernels.

What adapters add to a layer in training stays one operation each, which the compiler looks into no further
(`dbexp.train.site`). Code is made for shapes as they are, so batches should have few of them
(`dbexp.train.packing.seats`, `dbexp.sample.sizes`); this process finds it again the next time, whether a LoRA is merged
into the weights or not. All of it happens in one thread, for which torch keeps the compiler's settings.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dbexp.core.device import is_out_of_memory
from dbexp.core.errors import ConfigError, first_line
from dbexp.models import Model

_SHAPES = 64
"""Shapes that a block may be compiled for: each that its kind has in the network, times those of a batch. From torch's
own limit, 8, on it would go on without being compiled, and say so in no log that a user sees."""


_HARMLESS = ("The .grad attribute of a Tensor that is not a leaf", "Dynamo detected a call to a `functools.lru_cache`")
"""Beginnings of warnings: of what torch itself asks for, and of diffusers' question for torch's version."""


def problems(setting: str, mode: str, device: str) -> list[str]:
    """What this machine lacks for compiling, as a message, if that is known beforehand.

    Args:
        setting: name of the user's.
        mode: its value: blocks or model, see `compiled`.
        device: cpu, cuda, ...
    """
    lacks = []
    if device not in ("cpu", "cuda"):
        lacks.append(f"it is for cpu and cuda, and model.device is {device}")
    elif not _has_compiler("CXX", "c++", "g++", "clang++", "cl") and device == "cpu":
        lacks.append("there is no C++ compiler (g++ or clang++, or the variable CXX)")
    elif device == "cuda":
        if importlib.util.find_spec("triton") is None:
            lacks.append("the package triton is not installed")
        if not _has_compiler("CC", "cc", "gcc", "clang", "cl"):
            lacks.append("there is no C compiler (gcc or clang, or the variable CC)")
    return [f"{setting}={mode}: {', and '.join(lacks)}; give none, which needs nothing"] if lacks else []


def _has_compiler(variable: str, *names: str) -> bool:
    return any(shutil.which(name) for name in (os.environ.get(variable, "").partition(" ")[0], *names) if name)


def blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks that a denoiser repeats: innermost members of its lists of modules that hold several linear layers and
    no convolution."""
    inside = {
        member: set(member.modules())
        for module in denoiser.modules()
        if isinstance(module, nn.ModuleList)
        for member in module
    }
    repeated = [
        member
        for member, parts in inside.items()
        if sum(isinstance(part, nn.Linear) for part in parts) > 1
        and not any(isinstance(part, nn.Conv2d) for part in parts)
    ]
    return [block for block in repeated if inside[block].isdisjoint(set(repeated) - {block})]


@contextmanager
def compiled(model: Model, setting: str, mode: str, backend: str = "inductor") -> Iterator[None]:
    """Inside the block the denoiser in memory is compiled when it is first used with a shape.

    Args:
        setting: name of the user's that says so.
        mode: none; blocks: those that it repeats, each kind once; model: the whole, which takes longer.
        backend: of torch.

    Raises:
        ConfigError: torch cannot compile it on this machine.
    """
    if mode == "none":
        yield
        return
    denoiser = model.part(model.family.denoiser)
    parts = blocks(denoiser) if mode == "blocks" else [denoiser]
    limits: dict[str, Any] = {"recompile_limit": _SHAPES, "accumulated_recompile_limit": _SHAPES * len(parts)}
    try:
        with torch._dynamo.config.patch(limits), warnings.catch_warnings():
            for text in _HARMLESS:
                warnings.filterwarnings("ignore", text)
            for part in parts:
                part.forward = torch.compile(part.forward, backend=backend, dynamic=False)
            yield
    except RuntimeError as error:
        if is_out_of_memory(error) or not _is_compilers(error):
            raise
        raise ConfigError(
            f"{setting}={mode}: torch cannot compile this model here ({first_line(error)}); give none"
        ) from error
    finally:
        for part in parts:
            vars(part).pop("forward", None)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Inside the block, which may be one of `compiled`, nothing is."""
    with torch.compiler.set_stance("force_eager"):
        yield


def _is_compilers(error: BaseException) -> bool:
    """Whether the compiler raised it, and not what was compiled."""
    return type(error).__module__.startswith(("torch._dynamo.", "torch._inductor."))
