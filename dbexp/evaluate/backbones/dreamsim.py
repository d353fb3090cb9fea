"""DreamSim's network through the package `dreamsim`: pictures to vectors whose cosine distance is the metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

from dbexp.core.errors import ConfigError, needs
from dbexp.core.images import read_rgb
from dbexp.evaluate.backbones.base import Network, unreachable


class DreamSimNetwork(Network):
    """Pictures to DreamSim embeddings. Written for dreamsim 0.2.1.

    Args:
        cfg: with `type` and `weights`, as `dbexp.evaluate.metrics.dreamsim` has them.
        device: where it computes.

    Raises:
        ConfigError: the package or its weights cannot be had.
    """

    def __init__(self, cfg: Any, device: torch.device) -> None:
        try:
            from dreamsim import dreamsim
        except ImportError:
            raise ConfigError(f"metric=dreamsim: {needs('dreamsim', 'dreamsim')}") from None
        folder = Path(cfg.weights).expanduser() if cfg.weights else platformdirs.user_cache_path("dreamsim")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            model, self._preprocess = dreamsim(
                pretrained=True, device=str(device), cache_dir=str(folder), dreamsim_type=cfg.type
            )
        except Exception as error:  # the download fails in as many ways as there are libraries below it
            problem = f"DreamSim {cfg.type} could not be loaded"
            raise unreachable("weights", cfg.weights, problem, error, "the folder of its checkpoints") from error
        name = f"dreamsim/{cfg.type}"
        super().__init__(cfg, model, device, name=name, weights=cfg.weights, transform="1: the package's own")

    def reader(self, paths: Sequence[Path]) -> Callable[[Path], Tensor]:
        """The package's own transform; the paths do not matter."""
        return lambda path: self._preprocess(read_rgb(path))[0]

    def encode(self, pixels: Tensor) -> Tensor:
        """The embedding, normalised as the package does it."""
        embedding: Tensor = self.model.embed(pixels)
        return embedding.reshape(len(pixels), -1)  # the package drops the batch of one picture
