"""The DINO backbone (Caron et al., arXiv 2104.14294) through timm: columns `dino`, `pres` and their relatives.

The paper's is ViT-S/16: the CLS token after the last norm, 384 numbers. The transform is written by hand, because
timm's own for these weights resizes to 248 and the reference evaluation to 256.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from dbexp.config.schema import DinoConfig
from dbexp.core.errors import ConfigError
from dbexp.core.images import read_rgb
from dbexp.evaluate.backbones.base import (
    RANDOM,
    Network,
    load_strictly,
    options,
    read_state_dict,
    seeded,
    strict_fp32,
    unreachable,
)
from dbexp.evaluate.pictures import square, to_tensor


class Dino(Network):
    """Pictures to DINO embeddings.

    Raises:
        ConfigError: naming the field under evaluate.dino, and what to pass instead.
    """

    def __init__(self, cfg: DinoConfig, device: torch.device) -> None:
        super().__init__(
            cfg,
            _build(cfg),
            device,
            name=f"timm/{cfg.name}{options(cfg.kwargs)}",
            weights=cfg.weights,
            transform=f"1: shorter side {cfg.resize} bicubic, centre {cfg.crop}, mean {cfg.mean}, std {cfg.std}",
        )
        self._probe()

    def reader(self, paths: Sequence[Path]) -> Callable[[Path], Tensor]:
        """The shorter side to `resize`, then a centre crop; the paths do not matter."""
        cfg = self.cfg
        return lambda path: to_tensor(square(read_rgb(path), cfg.resize, cfg.crop), cfg.mean, cfg.std)

    def encode(self, pixels: Tensor) -> Tensor:
        """The CLS token after the last norm."""
        features: Tensor = self.model(pixels)
        return features

    def _probe(self) -> None:
        """Find out now, not after hours of training, that the model refuses pictures of this size."""
        if not 0 < self.cfg.crop <= self.cfg.resize:
            raise ConfigError(f"evaluate.dino.crop={self.cfg.crop}: must lie between 1 and resize={self.cfg.resize}")
        try:
            with strict_fp32(self.device):
                shape = self.model(torch.zeros(1, 3, self.cfg.crop, self.cfg.crop, device=self.device)).shape
        except (AssertionError, RuntimeError) as error:
            raise ConfigError(
                f"evaluate.dino.crop={self.cfg.crop}: {self.cfg.name} does not take this size ({error})"
            ) from error
        if len(shape) != 2:
            raise ConfigError(f"evaluate.dino.name={self.cfg.name}: gives {list(shape)} and not one vector per picture")


def _build(cfg: DinoConfig) -> nn.Module:
    architecture = cfg.name.split(".")[0]
    if not timm.is_model(architecture):
        raise ConfigError(
            f"evaluate.dino.name={cfg.name}: timm has no such model; the paper's is vit_small_patch16_224.dino"
        )
    kwargs: dict[str, Any] = {"num_classes": 0, **cfg.kwargs}
    if cfg.weights is None:
        return _from_hub(cfg, kwargs)
    try:
        with seeded():
            model: nn.Module = timm.create_model(cfg.name, pretrained=False, **kwargs)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"evaluate.dino.kwargs={cfg.kwargs}: {architecture} refuses them ({error})") from error
    if cfg.weights != RANDOM:
        field = "evaluate.dino.weights"
        load_strictly(model, _plain(read_state_dict(cfg.weights, field)), field, cfg.weights)
    return model


def _from_hub(cfg: DinoConfig, kwargs: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(cfg.name, pretrained=True, **kwargs)
    except Exception as error:  # the network fails in as many ways as there are libraries below timm
        problem = f"{cfg.name} could not be had from timm's hub"
        raise unreachable("evaluate.dino.weights", None, problem, error, "a local state dict") from error
    return model


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as timm has them: without the prefixes of DINO's own checkpoints, and without its training head."""
    names = {name: name.removeprefix("module.").removeprefix("backbone.") for name in tensors}
    return {short: tensors[name] for name, short in names.items() if not short.startswith("head.")}
