"""Base models behind one contract. A family (Stable Diffusion, ...) is one file here, with an entry in
`dbexp.config.families`.

A family owns whatever differs between base models: its parts, how text becomes rows of conditioning, how latents are
normalised, how times are drawn and what is predicted, its sites and samplers. Trainer, lanes, sampler, metrics and
export name none of these. Shapes: B rows of a batch, C latent channels, h and w latent size.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES, Family
from dbexp.config.schema import ModelConfig, TrainConfig
from dbexp.core.hashing import key_of
from dbexp.core.store import Store

VAE = "vae"
"""The part between pixels and latents, by the name that every family has for it."""

Conditioning: TypeAlias = Mapping[str, Tensor]
"""What the denoiser reads beside latents and times, by the family's own names. Dim 0 of every tensor is rows."""

SIZES = "sizes"
"""What the trainer adds to the conditioning, fp32 [B, 6]: height and width of the picture file, top and left of the cut
after the resize, height and width of the cut, all in pixels. Families whose denoiser is not told them ignore it."""


class Model(Protocol):
    """A frozen base model, loaded part by part when a part is first used."""

    family: Family
    identity: str
    """sha256 over the weights and configuration files."""
    name: str
    device: torch.device
    dtype: torch.dtype
    """Of the frozen weights."""

    def part(self, name: str) -> nn.Module:
        """A part that can be adapted, which `sites` refers to."""
        ...

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        """Names of the linear layers of a part that get an adapter, in a fixed order."""
        ...

    def kohya_prefix(self, part: str) -> str:
        """How kohya's trainers and ComfyUI call a part in the keys of a LoRA file."""
        ...

    def saved_site(self, part: str, site: str) -> str:
        """The name of a site in LoRA files, which keep the names of older library versions."""
        ...

    def release(self, *names: str) -> None:
        """Drop parts from memory; they are loaded again when used again."""
        ...

    @property
    def crowded(self) -> bool:
        """Whether memory has no room for encoders and denoiser side by side: callers release what they do not need."""
        ...

    def token_count(self, text: str) -> int:
        """Number of tokens of a text, without the start and end marks."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens that the text encoder sees, start and end marks included."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        """What `encode` reads, on the device, a row for each prompt."""
        ...

    def encode(self, tokens: Conditioning) -> Conditioning:
        """What the denoiser reads of the prompts that `tokenize` saw."""
        ...

    def collate(self, parts: Sequence[tuple[Conditioning, Sequence[int]]]) -> Conditioning:
        """Rows of several conditionings (or tokens), one after the other.

        Args:
            parts: each with how often each of its rows is repeated.
        """
        ...

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent posterior, fp32 [B, C, h, w], of pixels [B, 3, H, W] in [-1, 1].

        Both are scaled, so that mean + std * noise is what the denoiser is trained on.
        """
        ...

    def draw_times(self, count: int, generator: torch.Generator, cfg: TrainConfig, resolution: int) -> Tensor:
        """Times [count] on the CPU, as the forward process counts them: int64 steps, or fp32 shares of noise.

        Args:
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

    def enable_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass, or stop doing so, in the parts that are in memory."""
        ...

    @property
    def needs_mask(self) -> bool:
        """Whether the denoiser also reads a mask and the masked picture, as inpainting checkpoints do: it draws nothing
        else, and cannot be trained here."""
        ...

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        """A stock diffusers pipeline over the loaded parts, without safety checker or progress bar.

        Args:
            sampler: one of its family's; None: the checkpoint's own.
            task: what pictures start from: text, image (and text), or inpaint (a mask too).
        """
        ...

    def stock_pipeline(self, lora: Path | None) -> Any:
        """What anybody would load who has only diffusers: a fresh pipeline from the checkpoint's files, with its own
        sampler, and a LoRA file loaded into it. For checks; it shares no memory with this model.

        Args:
            lora: in any naming that diffusers reads; None: the base alone.
        """
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


def load(cfg: ModelConfig, store: Store) -> Model:
    """The base model of a config. The last one stays in memory, so that the jobs of a sweep share it.

    Raises:
        ConfigError: the checkpoint is not there, or is not of the family.
    """
    key = key_of({"store": str(store.root), **asdict(cfg)})
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = importlib.import_module(FAMILIES[cfg.family].module).load(cfg, store)
    return _loaded[key]
