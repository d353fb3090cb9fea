"""What the backbones have in common: protocols, batches in strict fp32, and weights with an identity."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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


@runtime_checkable
class OnDevice(Protocol):
    """A backbone whose weights can make room for something else."""

    def leave(self) -> None:
        """Free the device: the weights go to main memory, and come back when something is computed."""
        ...


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


class Network(ABC):
    """What all backbones do alike: compute in batches and in strict fp32, with an identity made from their weights.

    Args:
        cfg: settings.
        model: with its weights.
        device: where it computes.
        name: library, architecture and whatever else makes it compute something else; begins the `id`.
        weights: as the config names them.
        transform: preprocessing in words, with its version.
    """

    def __init__(
        self, cfg: Any, model: nn.Module, device: torch.device, *, name: str, weights: str | None, transform: str
    ) -> None:
        self.cfg, self.device, self.transform = cfg, device, transform
        self.random = weights == RANDOM
        self._model = model.float().eval().requires_grad_(False)
        self._is_there = False
        self.id = f"{name}/{origin(weights)}/sha256:{digest(self.model)}"

    @property
    def model(self) -> Any:
        """With its weights on the device, from the first use to `leave`."""
        if not self._is_there:
            self._model.to(self.device)
            self._is_there = True
        return self._model

    def leave(self) -> None:
        """See `OnDevice`."""
        if self._is_there and self.device.type != "cpu":
            self._model.to("cpu")
            self._is_there = False

    @abstractmethod
    def reader(self, paths: Sequence[Path]) -> Callable[[Path], Tensor]:
        """What turns each of these pictures into [3, H, W], one size for all of them."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """[b, 3, H, W] -> [b, D], on the device."""

    def batches(self, paths: Sequence[Path], batch_size: int) -> Iterator[Tensor]:
        """Vectors of pictures, [b, D] float32 on the CPU, as they are computed."""
        read = self.reader(paths)
        for start in range(0, len(paths), batch_size):
            pixels = torch.stack([read(path) for path in paths[start : start + batch_size]])
            with strict_fp32(self.device):
                yield self.encode(pixels.to(self.device)).float().cpu()

    def embed_images(self, paths: Sequence[Path], batch_size: int = 32) -> Tensor:
        """[N, D] float32 on the CPU, not normalised.

        Args:
            paths: N >= 1 pictures of any size.
            batch_size: pictures at once; it does not change the result beyond rounding.
        """
        return torch.cat(list(self.batches(paths, batch_size)))


# ------------------------------------------------------------------------------------------------------- weights


def absent(path: str | None, field: str) -> str | None:
    """What is wrong with a file of weights that is not there, naming `field`; None: nothing, or none is named."""
    if path in (None, RANDOM) or locate(path).is_file():
        return None
    return f"{field}={path}: there is no such file; give a state dict (.safetensors, .pth, .pt)"


def read_state_dict(path: str, field: str) -> dict[str, Tensor]:
    """Tensors of a .safetensors, .pth, .pt or .bin file, on the CPU, unwrapped from `state_dict`, `model` or `teacher`.

    Raises:
        ConfigError: naming `field`, if the file is absent, damaged or holds something else.
    """
    if problem := absent(path, field):
        raise ConfigError(problem)
    file = locate(path)
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


def unreachable(field: str, weights: str | None, problem: str, error: Exception, file: str) -> ConfigError:
    """What to say when a library could not fetch the weights that a config names.

    Args:
        field: of the config.
        weights: its value.
        problem: what could not be had, and from where.
        error: why.
        file: what kind of file would do.
    """
    return ConfigError(
        f"{field}={'null' if weights is None else weights}: {problem} ({first_line(error)}); connect to the network "
        f"once, or pass {field}=FILE, {file}, or {field}=random for a trial without meaning"
    )


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], field: str, source: str) -> None:
    """Load a state dict of which every tensor must fit.

    Raises:
        ConfigError: naming `field` and the first tensors that are missing, unknown or of another shape.
    """
    expected = module.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is unknown" for name in tensors if name not in expected]
    wrong += [
        f"{name} is {list(tensors[name].shape)} and should be {list(tensor.shape)}"
        for name, tensor in expected.items()
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
