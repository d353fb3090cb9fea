"""Model families behind one small protocol. A new family is one new file here, with an entry in
`dbexp.config.families`.

The protocol speaks of latents, token ids and text states, so that the trainer, the sampler and the lanes know nothing
of a family's classes. Shapes: B rows of a batch, C latent channels, h and w latent size, L tokens, D text width.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.hashing import key_of
from dbexp.core.store import Store


class Model(Protocol):
    """A frozen base model, loaded part by part when a part is first used."""

    identity: str
    """sha256 over the weights and configuration files."""
    name: str
    device: torch.device
    dtype: torch.dtype
    """Of the frozen weights."""

    def part(self, name: str) -> nn.Module:
        """The module that `sites` refers to: unet or text_encoder."""
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
        """Drop parts from memory (vae, unet, text_encoder); they are loaded again when used again."""
        ...

    def token_count(self, text: str) -> int:
        """Number of tokens of a text, without the start and end marks."""
        ...

    @property
    def max_tokens(self) -> int:
        """Tokens that the text encoder sees, start and end marks included."""
        ...

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """int64 [B, L] on the device, padded and cut to `max_tokens`."""
        ...

    def encode_tokens(self, ids: Tensor) -> Tensor:
        """Text states [B, L, D] of token ids [B, L]."""
        ...

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latent posterior, fp32 [B, C, h, w], of pixels [B, 3, H, W] in [-1, 1].

        Both are scaled, so that mean + std * noise is what the denoiser is trained on.
        """
        ...

    @property
    def train_timesteps(self) -> int:
        """Timesteps of the forward process, usually 1000."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The forward process: noisy latents at int64 timesteps [B]."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict: the noise, or v, as the checkpoint says."""
        ...

    def loss_weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR-gamma weights [B] (Hang et al., arXiv 2303.09556, section 3.4) for this checkpoint's target."""
        ...

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The denoiser's prediction [B, C, h, w] for noisy latents, timesteps [B] and text states [B, L, D]."""
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
