"""What the three backbones have in common: their face towards `evaluate`, strict fp32, and weights with an identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from dbexp.core.errors import ConfigError, first_line, listed
from dbexp.core.files import PREFIX, locate
from dbexp.evaluate.functional import FloatArray

RANDOM = "random"
"""Value of a `weights` field that asks for seeded random weights."""


class Backbone(Protocol):
    """What every backbone tells about itself."""

    id: str
    """Library, architecture, origin and sha256 of the weights; goes into every record."""
    transform: str
    """Preprocessing in words, with its version; features are cached under `id` and this."""
    random: bool
    """The weights are random, so the numbers are comparable with nothing."""


class ImageEncoder(Backbone, Protocol):
    """Pictures to vectors."""

    def embed_images(self, paths: Sequence[Path], batch_size: int = 32) -> Tensor:
        """[N, D] float32 on the CPU, not normalised; independent of the batch size up to rounding."""
        ...


class ImageTextEncoder(ImageEncoder, Protocol):
    """Pictures and texts to vectors of one space."""

    context_length: int
    """Tokens that the text encoder reads, start and end included."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D] float32 on the CPU, not normalised."""
        ...

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """For each text: is it longer than `context_length`, so that its end is not read?"""
        ...


class PairwiseDistance(Backbone, Protocol):
    """A perceptual distance between pictures."""

    def mean_distances(self, paths: Sequence[Path], batch_size: int = 32) -> FloatArray:
        """[K] mean distance of each picture to the K - 1 others, K >= 2."""
        ...


@contextmanager
def strict_fp32(device: torch.device) -> Iterator[None]:
    """Inference in full fp32: no gradients, no autocast, no TF32, whatever the caller has switched on."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        with torch.inference_mode(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


@contextmanager
def seeded() -> Iterator[None]:
    """Initialisation that is equal on every machine and leaves the caller's generator alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def in_batches(
    encode: Callable[[Tensor], Tensor],
    read: Callable[[Path], Tensor],
    paths: Sequence[Path],
    batch_size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Read and encode pictures batch by batch.

    Args:
        encode: [b, 3, H, W] -> [b, D].
        read: path -> [3, H, W], one size for all.
        paths: N pictures.
        batch_size: pictures at once.
        device: where `encode` runs.

    Yields:
        [b, D] float32 on the CPU.
    """
    for start in range(0, len(paths), batch_size):
        batch = torch.stack([read(path) for path in paths[start : start + batch_size]])
        with strict_fp32(device):
            yield encode(batch.to(device)).float().cpu()


# ------------------------------------------------------------------------------------------------------- weights


def read_state_dict(path: str, field: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth, .pt or .bin file, on the CPU, unwrapped from `state_dict`, `model` or `teacher`.

    Raises:
        ConfigError: naming `field`, if the file is absent, damaged or holds something else.
    """
    file = locate(path)
    if not file.is_file():
        raise ConfigError(f"{field}={path}: there is no such file; give a state dict (.safetensors, .pth, .pt)")
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in every way there is, down to struct.error
        raise ConfigError(f"{field}={path}: cannot be read as a state dict ({first_line(error)})") from error
    for wrapper in ("state_dict", "model", "teacher"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)} if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise ConfigError(f"{field}={path}: holds no tensors; give a state dict (.safetensors, .pth, .pt)")
    return tensors


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], field: str, source: str) -> None:
    """Load a state dict of which every tensor must fit.

    Raises:
        ConfigError: naming `field` and the first tensors that are missing, unknown or of another shape.
    """
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in own]
    wrong += [
        f"{name} is {list(tensors[name].shape)} and should be {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        raise ConfigError(f"{field}={source}: does not fit the architecture: {listed(wrong, 3)}")
    module.load_state_dict(tensors)


def digest(module: nn.Module) -> str:
    """First 12 hexadecimal digits of the sha256 over names, dtypes, shapes and bytes of a module's tensors.

    The weights themselves are hashed and not their file, so one set of weights has one identity, however it is stored.
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        sha.update(tensor.cpu().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def finished(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in fp32 and evaluation mode, frozen, on its device."""
    return module.float().eval().requires_grad_(False).to(device)


def origin(weights: str | None) -> str:
    """The part of a backbone's id that says where its weights come from, without a path of this machine."""
    if weights is None:
        return "hub"
    if weights.startswith(PREFIX):
        return weights
    return "random weights" if weights == RANDOM else "file"


def options(kwargs: Mapping[str, Any]) -> str:
    """The part of a backbone's id for an architecture that departs from the named one: a short hash, or nothing."""
    if not kwargs:
        return ""
    return "+" + hashlib.sha256(json.dumps(kwargs, sort_keys=True, default=str).encode()).hexdigest()[:8]
