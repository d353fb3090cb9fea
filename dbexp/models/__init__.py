"""Base models behind one contract. A family (Stable Diffusion, ...) is one file here, with an entry in
`dbexp.config.families` that says what is known of it before any weight is read.

A family owns whatever differs between base models: its parts, how text becomes rows of conditioning, how latents are
normalised, how times are drawn and what is predicted, its sites and samplers, the arguments of its pipelines and the
names in its files. Trainer, lanes, sampler, metrics and export name none of these. Most of the contract is written
once, in `dbexp.models.checkpoint`; README.md beside this file tells how to add a family.

Shapes: B rows of a batch, C latent channels, h and w latent size, H and W pixels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dbexp.config.families import FAMILIES, Family
from dbexp.config.schema import ModelConfig, TrainConfig
from dbexp.core.hashing import key_of
from dbexp.core.store import Store

if TYPE_CHECKING:
    from PIL import Image

VAE = "vae"
"""The part between pixels and latents, by the name that every family has for it."""

Conditioning: TypeAlias = Mapping[str, Tensor]
"""What the denoiser reads beside latents and times, by the family's own names. Dim 0 of every tensor is rows."""

SIZES = "sizes"
"""What the trainer adds to the conditioning, fp32 [B, 6]: height and width of the picture file, top and left of the cut
after the resize, height and width of the cut, all in pixels. Families whose denoiser is not told them ignore it."""
GUIDANCE = "guidance"
"""Another such, fp32 [B]: `train.guidance` of each row. Families whose denoiser is told none ignore it."""


@dataclass(frozen=True)
class Batch:
    """Images that a pipeline draws at once.

    Attributes:
        text: conditioning of B rows; or B prompts, for a pipeline that has encoders of its own.
        negative: B rows to steer away from; None: those of the empty prompt, where guidance asks for any.
        seeds: one generator for each image, on the CPU whatever the device: noise is then the same on every machine.
        steps: sampling steps.
        guidance: of classifier-free guidance, where 1 is none; or the number that a distilled model was taught.
        width, height: in pixels.
        image: RGB, what every image starts from; None: noise alone.
        mask: black (keep) and white (draw), mode L; None: all of `image` is drawn anew.
        strength: share of the steps that `image` goes through.
        after_step: told (steps done, steps in all).
    """

    text: Conditioning | tuple[str, ...]
    negative: Conditioning | None
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    width: int
    height: int
    image: Image.Image | None = None
    mask: Image.Image | None = None
    strength: float = 1.0
    after_step: Callable[[int, int], None] = lambda step, steps: None


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA file holds: the adapter of every site, and what is said about it."""

    weights: Mapping[str, tuple[Tensor, Tensor]]
    """'part.site' -> (down [r, in], up [out, r])"""
    alphas: Mapping[str, float]
    """part -> alpha"""
    provenance: Mapping[str, Any]

    def baked(self) -> LoraFile:
        """The same LoRA with alpha equal to the rank, for programs that know no alpha: B takes the difference."""
        weights = {
            name: (down, up * (self.alphas[name.partition(".")[0]] / down.shape[0]))
            for name, (down, up) in self.weights.items()
        }
        ranks = {name.partition(".")[0]: float(down.shape[0]) for name, (down, _) in self.weights.items()}
        return replace(self, weights=weights, alphas=ranks)

    def updates(self) -> dict[str, tuple[Tensor, Tensor]]:
        """'part.site' -> A [s, in], B [out, s] of its update B A, without what only fills the rank of the part."""
        found = {}
        for name, (down, up) in self.baked().weights.items():
            used = down.any(1) | up.any(0)
            found[name] = down[used], up[:, used]
        return found


@dataclass(frozen=True)
class Cut:
    """What an encoder reads of a text that is too long for it.

    Attributes:
        encoder: the part.
        tokens: of the text, without marks.
        room: tokens that it reads of a text at most.
        read: characters of the text that it reads.
    """

    encoder: str
    tokens: int
    room: int
    read: int


class Model(Protocol):
    """A frozen base model, loaded part by part when a part is first used."""

    family: Family
    identity: str
    """sha256 over the weights and configuration files, and how the weights are quantised."""
    name: str
    device: torch.device
    dtype: torch.dtype
    """Of the frozen weights, but for those that are quantised, and of what is computed with them."""
    quantize: str | None
    """How the denoiser's weights are quantised; see `dbexp.models.quantize`."""
    before_loading: Callable[[], None]
    """Called before a part is read."""

    # -- parts ------------------------------------------------------------------------------------------------------

    def part(self, name: str) -> nn.Module:
        """A part that can be adapted, which `sites` refers to."""
        ...

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        """Names of the linear layers of a part that get an adapter, in a fixed order."""
        ...

    def layers(self, part: str) -> Mapping[str, tuple[int, int]]:
        """Every layer of a part that a LoRA could adapt -> (outputs, inputs); no weight is read for it."""
        ...

    def native_layers(self) -> Mapping[str, tuple[str, ...]]:
        """Layer of the denoiser as the original checkpoint calls it -> the layers here that it consists of, in the
        order of its outputs; those that are called as here may be left out."""
        ...

    def release(self, *names: str) -> None:
        """Drop parts from memory; they are loaded again when used again."""
        ...

    @property
    def crowded(self) -> bool:
        """Whether memory has no room for encoders and denoiser side by side: callers release what they do not need."""
        ...

    def enable_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, or stop doing so, in the parts that are in memory."""
        ...

    # -- text -------------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Tokens of a prompt that the encoders read, without their marks."""
        ...

    def token_count(self, text: str) -> int:
        """Number of tokens of a text, without marks."""
        ...

    def cuts(self, text: str) -> tuple[Cut, ...]:
        """What is read of a text by each encoder that it is too long for; nothing where all of it is read."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        """What `encode` reads, on the device, a row for each prompt."""
        ...

    def encode(self, tokens: Conditioning) -> Conditioning:
        """What the denoiser reads of the prompts that `tokenize` saw."""
        ...

    def unconditional(self, negative: str) -> Conditioning:
        """What guidance steers away from, one row; of the empty prompt, what the family's pipeline takes for it."""
        ...

    def collate(self, parts: Sequence[tuple[Conditioning, Sequence[int]]]) -> Conditioning:
        """Rows of several conditionings (or tokens), one after the other.

        A family whose texts differ in length pads them by a rule that depends on each text alone, or a lane would
        depend on its neighbours.

        Args:
            parts: each with how often each of its rows is repeated.
        """
        ...

    # -- training ---------------------------------------------------------------------------------------------------

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent posterior, fp32 [B, C, h, w], of pixels [B, 3, H, W] in [-1, 1].

        Both are normalised, so that mean + std * noise is what the denoiser is trained on.
        """
        ...

    def draw_times(self, count: int, generator: torch.Generator, cfg: TrainConfig, resolution: int) -> Tensor:
        """Times [count] on the CPU, as the forward process counts them: int64 steps, or fp32 shares of noise.

        Args:
            cfg: distribution and shift.
            resolution: width and height of training images in pixels.
        """
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The forward process: noisy latents at times [B]."""
        ...

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """What the denoiser should predict: the noise, or a velocity, as the checkpoint says."""
        ...

    def loss_weight(self, times: Tensor, cfg: TrainConfig) -> Tensor | None:
        """What each row [B] counts in the loss; None: every one the same."""
        ...

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction [B, C, h, w] of `target` for noisy latents, times [B] and their conditioning."""
        ...

    # -- sampling ---------------------------------------------------------------------------------------------------

    @property
    def needs_mask(self) -> bool:
        """Whether the denoiser also reads a mask and the masked picture, as inpainting checkpoints do: it draws nothing
        else, and cannot be trained here."""
        ...

    @property
    def sampler(self) -> str:
        """Class name of the checkpoint's own sampler."""
        ...

    def guided(self, guidance: float) -> bool:
        """Whether a guidance makes the denoiser read `Batch.negative` too."""
        ...

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        """A diffusers pipeline around the denoiser in memory: without encoders, for it draws from embeddings alone.

        Args:
            sampler: a name of `Family.samplers`; None: the checkpoint's own.
            task: one of `Family.tasks`, what images start from.
        """
        ...

    def draw(self, pipe: Any, batch: Batch) -> NDArray[np.floating[Any]]:
        """Images [B, H, W, 3] in [0, 1], by a pipeline of this model; NaN where one came out so."""
        ...

    def stock_pipeline(self, lora: Path | None) -> Any:
        """What anybody would load who has only diffusers: a fresh pipeline from the checkpoint's files, with its own
        sampler, and a LoRA file loaded into it. For checks; it shares no memory with this model.

        Args:
            lora: in any naming that diffusers reads; None: the base alone.
        """
        ...

    # -- files ------------------------------------------------------------------------------------------------------

    @property
    def formats(self) -> tuple[str, ...]:
        """Those of `Family.formats` that stock diffusers reads for this checkpoint."""
        ...

    def saved_site(self, part: str, site: str) -> str:
        """The name of a site in LoRA files, which keep the names of older library versions."""
        ...

    def export(self, file: LoraFile, format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of a LoRA in one of `formats`."""
        ...


def collate(parts: Sequence[tuple[Conditioning, Sequence[int]]]) -> Conditioning:
    """`Model.collate` where all texts are equally long. Numbers of several precisions become the finest of them."""
    rows: dict[str, list[Tensor]] = {}
    for conditioning, counts in parts:
        for name, values in conditioning.items():
            for value, count in zip(values.split(1), counts, strict=True):
                rows.setdefault(name, []).append(value.expand(count, *value.shape[1:]))
    return {name: torch.cat(values) for name, values in rows.items()}


_loaded: dict[str, Model] = {}
_MOST_LOADED = 2
"""The checkpoint that is trained on and the one that draws."""


def load(cfg: ModelConfig, store: Store) -> Model:
    """The base model of a config, which is trained on. The last two stay, so that the jobs of a sweep share them; only
    one of them has parts in memory: whichever loads one makes the other let go of its own.

    Raises:
        ConfigError: the checkpoint is not there, or is not of the family.
    """
    cfg = replace(cfg, sample_path=None, training_lora=None)  # of what is done with it, not of what it is
    key = key_of({"store": str(store.root), **asdict(cfg)})
    if key not in _loaded:
        model: Model = importlib.import_module(FAMILIES[cfg.family].module).load(cfg, store)
        model.before_loading = partial(_let_go_of_others, key)
        while len(_loaded) >= _MOST_LOADED:
            _loaded.pop(next(iter(_loaded)))
        _loaded[key] = model
    _loaded[key] = _loaded.pop(key)  # the last that was asked for is the last to go
    return _loaded[key]


def _let_go_of_others(key: str) -> None:
    for other, model in _loaded.items():
        if other != key:
            model.release(VAE, model.family.denoiser, *model.family.encoders)


def drawing(cfg: ModelConfig) -> ModelConfig:
    """The checkpoint that draws what a LoRA has learnt: `sample_path`, or the one that is trained on."""
    if cfg.sample_path is None:
        return replace(cfg, training_lora=None)
    path = PurePath(cfg.sample_path)
    name = path.stem if path.suffix in (".safetensors", ".ckpt") else path.name
    return replace(
        cfg, name=name, path=cfg.sample_path, revision=None, variant=None, sample_path=None, training_lora=None
    )


def forget() -> None:
    """Let go of the base model that `load` keeps."""
    _loaded.clear()
