"""Captioned pictures as latents: drawn and encoded in shards, each used a few times, the newest kept on disk."""

from __future__ import annotations

import hashlib
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from dbexp.storybook.pretrain.architecture import TEXT_LENGTH
from dbexp.storybook.pretrain.stream import Pictures, draw_captioned
from dbexp.storybook.pretrain.train_vae import latent_statistics, to_tensor
from dbexp.storybook.pretrain.training import atomic_save, generator

SHARD = 4096
"""Pictures of a shard."""
REUSE = 6
"""How often, on average, the trainer asks for a picture before the next shard is due."""
WINDOW = 12
"""Shards that a batch is drawn from: the newest ones."""

Shard = tuple[Tensor, Tensor]
"""Scaled latents [n, 16, 16, 16] float16 and token ids [n, 24] int64, on the CPU."""


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids padded to the text encoder's length: int64 [n, 24]."""
    encoded = tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def scaling_factor(vae: AutoencoderKL, device: torch.device) -> float:
    """What brings the latents to unit standard deviation, rounded so that every device agrees on it."""
    return round(1.0 / latent_statistics(vae, device)["latent_std"], 3)


class LatentPool:
    """Batches of latents and token ids; batch `first` is the same after a restart.

    Args:
        vae: trained and frozen; its posterior mean is what the UNet learns (the posterior is narrow).
        tokenizer: of the text encoder.
        folder: shards are kept here, named by the hash of the encoder.
        device: where to encode, and where batches go.
        seed: of the pictures.
        executor: draws the next shard while the last one is in use; None draws in this process when needed.
        shard: pictures of a shard.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        folder: Path,
        device: torch.device,
        seed: int,
        executor: Executor | None = None,
        shard: int = SHARD,
    ) -> None:
        self.vae, self.tokenizer, self.folder, self.device = vae, tokenizer, folder, device
        self.seed, self.executor, self.size = seed, executor, shard
        self.scale = scaling_factor(vae, device)
        self._key = weights_hash(vae.encoder)[:12]
        self._shards: dict[int, Shard] = {}
        self._drawing: dict[int, list[Future[tuple[Pictures, list[str]]]]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Latents float32 [count, 16, 16, 16] and token ids [count, 24], chosen from the newest shards."""
        with torch.autocast(self.device.type, enabled=False):  # which cannot join float16 tensors on a CPU
            return self._batch(first, count)

    def _batch(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        newest = first // (self.size * REUSE)
        oldest = max(0, newest + 1 - WINDOW)
        self._hold(range(oldest, newest + 1))
        picks = torch.randint((newest + 1 - oldest) * self.size, (count,), generator=self._generator(first)).tolist()
        rows = [(self._shards[oldest + pick // self.size], pick % self.size) for pick in picks]
        latents = torch.stack([shard[0][row] for shard, row in rows]).to(self.device).float()
        ids = torch.stack([shard[1][row] for shard, row in rows]).to(self.device)
        return latents.contiguous(memory_format=torch.channels_last), ids

    def _generator(self, first: int) -> torch.Generator:
        return generator(torch.device("cpu"), self.seed, "pool", first)

    def _hold(self, wanted: range) -> None:
        """Load or make the wanted shards, forget the others, and have the next one drawn."""
        for index in wanted:
            if index not in self._shards:
                self._shards[index] = self._load(index)
        for index in [index for index in self._shards if index not in wanted]:
            del self._shards[index]
            self._path(index).unlink(missing_ok=True)
        upcoming = wanted.stop
        if self.executor and upcoming not in self._drawing and not self._path(upcoming).exists():
            self._drawing[upcoming] = self._submit(upcoming)

    def _path(self, index: int) -> Path:
        return self.folder / f"{self._key}-{self.seed}-{self.size}-{index:05d}.pt"

    def _load(self, index: int) -> Shard:
        if self._path(index).exists():
            latents, ids = torch.load(self._path(index), weights_only=True)
            return latents, ids
        pictures, captions = self._draw(index)
        latents = torch.cat([self._encode(pictures[i : i + 256]) for i in range(0, len(pictures), 256)])
        shard = latents, token_ids(self.tokenizer, captions)
        atomic_save(shard, self._path(index))
        return shard

    @torch.no_grad()
    def _encode(self, pictures: Pictures) -> Tensor:
        mean: Tensor = self.vae.encode(to_tensor(pictures, self.device)).latent_dist.mean
        return (mean * self.scale).half().cpu()

    def _draw(self, index: int) -> tuple[Pictures, list[str]]:
        if self.executor is None:
            return draw_captioned(self.seed, index * self.size, self.size)
        parts = [future.result() for future in self._drawing.pop(index, None) or self._submit(index)]
        return np.concatenate([part[0] for part in parts]), [text for part in parts for text in part[1]]

    def _submit(self, index: int) -> list[Future[tuple[Pictures, list[str]]]]:
        assert self.executor is not None
        chunk = min(256, self.size)
        starts = range(index * self.size, (index + 1) * self.size, chunk)
        return [self.executor.submit(draw_captioned, self.seed, start, chunk) for start in starts]


def weights_hash(module: torch.nn.Module) -> str:
    """sha256 over names, shapes and values of the weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
