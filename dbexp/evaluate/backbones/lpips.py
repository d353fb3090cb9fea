"""The LPIPS backbone (Zhang et al., arXiv 1801.03924, version 0.1) through the lpips package: `div`, `div_prior`.

LPIPS(i, j) is the sum over layers of the mean over positions of sum_c w_c (f_i - f_j)^2, with channel-normalised
features f. With sqrt(w_c / positions) folded into the features it is the squared Euclidean distance of two vectors, so
the mean over all pairs of K pictures takes K feature passes and no K (K - 1) / 2 distance calls.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import lpips
import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from dbexp.config.schema import LpipsConfig
from dbexp.core.errors import ConfigError
from dbexp.core.images import read_rgb
from dbexp.evaluate.backbones.base import RANDOM, Network, load_strictly, read_state_dict, seeded, unreachable
from dbexp.evaluate.functional import FloatArray, mean_squared_distances
from dbexp.evaluate.pictures import square, to_tensor

_ZOO = {
    "alex": torchvision.models.AlexNet_Weights.IMAGENET1K_V1,
    "vgg": torchvision.models.VGG16_Weights.IMAGENET1K_V1,
    "squeeze": torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1,
}
_MOST_AT_ONCE = 8
"""Pictures per forward pass: the features of one 512-pixel picture are 11 MB (alex) to 130 MB (vgg)."""


class Lpips(Network):
    """LPIPS distances between pictures.

    Raises:
        ConfigError: naming the field under evaluate.lpips, and what to pass instead.
    """

    def __init__(self, cfg: LpipsConfig, device: torch.device) -> None:
        super().__init__(
            cfg,
            _build(cfg),
            device,
            name=f"lpips/0.1/{cfg.net}",
            weights=cfg.trunk,
            transform=f"1: centre square, {cfg.size} pixels or the smallest picture's side, bicubic, [-1, 1]",
        )

    def mean_distances(self, paths: Sequence[Path], batch_size: int = 32) -> FloatArray:
        """[K] mean LPIPS of each picture to the others; its mean is the mean over pairs.

        Args:
            paths: K >= 2 pictures, as for `embed_images`.
            batch_size: pictures at once; it does not change the result beyond rounding.
        """
        if len(paths) <= _MOST_AT_ONCE:
            return mean_squared_distances(list(self.embed_images(paths, batch_size).numpy()))
        return mean_squared_distances(_Passes(self, paths, batch_size))

    def batches(self, paths: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
        """As of every backbone, never more at once than memory takes."""
        return super().batches(paths, min(batch_size, _MOST_AT_ONCE))

    def reader(self, paths: Sequence[Path]) -> Callable[[Path], Tensor]:
        """A centre square, all of the smallest picture's size if that is below `size`."""
        side, half = min(self.cfg.size, *map(_short_side, paths)), (0.5, 0.5, 0.5)
        return lambda path: to_tensor(square(read_rgb(path), side, side), half, half)

    def encode(self, pixels: Tensor) -> Tensor:
        """[b, 3, H, W] in [-1, 1] -> [b, D]; the squared Euclidean distance of two rows is their LPIPS."""
        layers = []
        trunk, scale, heads = self.model.net, self.model.scaling_layer, self.model.lins
        for features, head in zip(trunk(scale(pixels)), heads, strict=True):
            weight = head.model[-1].weight  # [1, C, 1, 1]; the dropout before it is for training
            positions = features.shape[2] * features.shape[3]
            layers.append((lpips.normalize_tensor(features) * (weight / positions).sqrt()).flatten(1))
        return torch.cat(layers, dim=1)


class _Passes:
    """Embeddings one by one, computed anew at each iteration: a hundred of them would not fit in memory."""

    def __init__(self, backbone: Lpips, paths: Sequence[Path], batch_size: int) -> None:
        self.backbone, self.paths, self.batch_size = backbone, paths, batch_size

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        return chain.from_iterable(batch.numpy() for batch in self.backbone.batches(self.paths, self.batch_size))


def _short_side(path: Path) -> int:
    with Image.open(path) as image:  # reads the header alone
        return int(min(image.size))


def _build(cfg: LpipsConfig) -> nn.Module:
    if cfg.net not in _ZOO:
        raise ConfigError(f"evaluate.lpips.net={cfg.net}: choose one of {', '.join(_ZOO)}")
    with warnings.catch_warnings(), seeded():
        # lpips asks torchvision for its networks in the way of 2020
        warnings.filterwarnings("ignore", message=".*pretrained.*|.*weight enum.*", category=UserWarning)
        # every weight that lpips itself would load is loaded below, so that a missing one is noticed
        model: nn.Module = lpips.LPIPS(net=cfg.net, pretrained=cfg.heads is None, pnet_rand=True, verbose=False)
    if cfg.trunk != RANDOM:
        _load_trunk(model.get_submodule("net"), cfg)
    if cfg.heads is not None:
        _load_heads(model, cfg.heads)
    return model


def _load_trunk(trunk: nn.Module, cfg: LpipsConfig) -> None:
    """Fill lpips' slices, whose layers keep their number in torchvision's `features`."""
    field, source = "evaluate.lpips.trunk", "null" if cfg.trunk is None else cfg.trunk
    tensors = _from_zoo(cfg.net) if cfg.trunk is None else read_state_dict(cfg.trunk, field)
    by_layer = {name.removeprefix("features."): tensor for name, tensor in tensors.items()}
    layers = {name: name.partition(".")[2] for name in trunk.state_dict()}
    tensors = {name: by_layer[layer] for name, layer in layers.items() if layer in by_layer}
    load_strictly(trunk, tensors, field, source)


def _from_zoo(net: str) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = _ZOO[net].get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # URLError, HTTPError, OSError, RuntimeError for a broken download
        problem, file = (
            f"{net} could not be had from torchvision's model zoo",
            "torchvision's state dict of the network",
        )
        raise unreachable("evaluate.lpips.trunk", None, problem, error, file) from error
    return tensors


def _load_heads(model: nn.Module, path: str) -> None:
    field = "evaluate.lpips.heads"
    heads = {name: tensor for name, tensor in read_state_dict(path, field).items() if name.startswith("lin")}
    negative = [name for name, tensor in heads.items() if bool((tensor < 0).any())]
    if negative:
        raise ConfigError(f"{field}={path}: {negative[0]} has negative weights, which make no distance")
    # lpips registers each head twice, as lin0 and as lins.0
    layers = nn.ModuleDict({name: child for name, child in model.named_children() if re.fullmatch(r"lin\d", name)})
    load_strictly(layers, heads, field, path)
