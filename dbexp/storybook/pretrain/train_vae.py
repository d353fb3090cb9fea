"""Stage `vae`: the decoder, trained on the broad gamut so that colours nobody captioned can be drawn.

The encoder stays what it starts as, the principal components of blocks. So the latents never change: the UNet can learn
beside the decoder, and the decoder can learn on under a finished UNet.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from concurrent.futures import Executor
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from dbexp.storybook.pretrain.architecture import build_vae
from dbexp.storybook.pretrain.stream import Pictures, Stream, draw_broad
from dbexp.storybook.pretrain.training import Recipe, generator
from dbexp.storybook.pretrain.vae_init import start_from_components
from dbexp.storybook.world.subjects import SUBJECTS
from dbexp.storybook.world.world import draw, scenes_of_class

CPU_RECIPE = Recipe(samples=24_000, batch=4, lr=2e-3, ema_samples=1_000)
GPU_RECIPE = Recipe(samples=1_000_000, batch=64, lr=2e-3, ema_samples=20_000)
START_PICTURES = 600
"""Whose blocks give the principal components that the encoder starts from."""
EDGE_WEIGHT = 0.5
"""Of the difference between neighbouring pixels' differences: what keeps eyes and outlines crisp."""


def to_tensor(pictures: Pictures, device: torch.device) -> Tensor:
    """uint8 [n, h, w, 3] to float32 [n, 3, h, w] in [-1, 1]."""
    tensor = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)
    return (tensor.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 on pixels and on the differences of neighbouring pixels."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + EDGE_WEIGHT * edges


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture in dB, for values in [-1, 1]: [n]."""
    mse = (output.clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10.0 * torch.log10(4.0 / mse)


def held_out_pictures() -> dict[str, Pictures]:
    """Evaluation pictures: the held-out subjects in all their scenes, and gamut pictures of another seed."""
    subjects = [
        np.asarray(draw(subject.identity, scene, random.Random(f"vae evaluation/{name}/{i}")))
        for name, subject in SUBJECTS.items()
        for i, scene in enumerate(scenes_of_class(subject.class_noun))
    ]
    return {"subjects": np.stack(subjects), "gamut": draw_broad(-1, 0, 96)}


class VaeTask:
    """Reconstruct pictures of the gamut."""

    name = "vae"

    def __init__(self, device: torch.device, seed: int, executor: Executor | None = None) -> None:
        torch.manual_seed(seed)
        self.vae = build_vae()
        start_from_components(self.vae, to_tensor(draw_broad(seed, 0, START_PICTURES), torch.device("cpu")))
        self.vae.encoder.requires_grad_(False)
        self.vae.quant_conv.requires_grad_(False)
        self.vae.to(device, memory_format=torch.channels_last)
        self.modules: dict[str, nn.Module] = {"vae": self.vae}
        self.device, self.seed = device, seed
        self.pictures = Stream(draw_broad, seed, executor)

    def loss(self, first: int, count: int) -> dict[str, Tensor]:
        """Reconstruction loss on gamut pictures `first` to `first + count`."""
        pictures = to_tensor(self.pictures.take(first, count), self.device)
        with torch.no_grad():
            posterior = self.vae.encode(pictures).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        # the noise also makes the decoder forgive the small errors of a UNet
        noise = torch.randn(mean.shape, generator=generator(self.device, self.seed, "vae", first), device=self.device)
        output = self.vae.decode(mean + std * noise).sample.float()
        return {"loss": reconstruction_loss(output, pictures), "psnr": psnr(output, pictures).mean()}

    @torch.no_grad()
    def evaluate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """PSNR in dB on held-out subjects and colours, and the scale of the latents."""
        vae = cast(AutoencoderKL, modules["vae"])
        figures = {}
        for name, pictures in held_out_pictures().items():
            tensor = to_tensor(pictures, self.device)
            figures[f"psnr_{name}"] = psnr(vae.decode(vae.encode(tensor).latent_dist.mean).sample, tensor).mean().item()
        figures.update(latent_statistics(vae, self.device))
        return figures


@torch.no_grad()
def latent_statistics(vae: AutoencoderKL, device: torch.device) -> dict[str, float]:
    """Standard deviation of the latents over the gamut (its inverse is the scaling factor) and of their posterior."""
    posterior = vae.encode(to_tensor(draw_broad(-2, 0, 64), device)).latent_dist
    total = math.sqrt((posterior.mean.float().var() + posterior.var.float().mean()).item())
    return {"latent_std": total, "posterior_std": posterior.std.float().mean().item()}
