"""Stage `unet`: the UNet and the text encoder together, on latents of the trained VAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from dbexp.storybook.pretrain.architecture import (
    build_scheduler,
    build_text_encoder,
    build_unet,
    build_vae,
    use_plain_attention,
)
from dbexp.storybook.pretrain.latent_pool import LatentPool, token_ids
from dbexp.storybook.pretrain.stream import draw_captioned
from dbexp.storybook.pretrain.tokenizer import build_tokenizer
from dbexp.storybook.pretrain.train_vae import to_tensor
from dbexp.storybook.pretrain.training import Recipe, averaged_weights, generator

CPU_RECIPE = Recipe(samples=4_000_000, batch=64, lr=1e-3, ema_samples=10_000)
GPU_RECIPE = Recipe(samples=4_000_000, batch=256, lr=2e-3, ema_samples=100_000)
CAPTION_DROPOUT = 0.1
"""Share of samples that see an empty prompt, for classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598)."""
SNR_GAMMA = 5.0
WEIGHT_FLOOR = 0.1
EVALUATION_TIMESTEPS = (100, 300, 500, 700, 900)
EVALUATION_PICTURES = 64
Predict: TypeAlias = Callable[..., Any]
"""A UNet as it is called: (latents, timesteps, text states) to an output with `sample`."""


def load_vae(out: Path, device: torch.device) -> AutoencoderKL:
    """The trained VAE of a pre-training folder, frozen."""
    vae = build_vae()
    vae.load_state_dict(averaged_weights(out / "vae", "vae"))
    frozen: AutoencoderKL = vae.requires_grad_(False).eval().to(device, memory_format=torch.channels_last)
    return frozen


class UnetTask:
    """Predict v of noised latents from their captions.

    Args:
        vae: trained and frozen.
        folder: of the latents' shards.
        device: of everything.
        seed: of weights, pictures and noise.
        executor: draws ahead.
        shard: pictures of a shard of latents.
        compiled: compile the UNet; minutes at the start, a fifth less time afterwards.
    """

    name = "unet"

    def __init__(
        self,
        vae: AutoencoderKL,
        folder: Path,
        device: torch.device,
        seed: int,
        executor: Executor | None = None,
        shard: int = 4096,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.tokenizer = build_tokenizer()
        self.unet = build_unet().to(device, memory_format=torch.channels_last)
        self.text_encoder = build_text_encoder(self.tokenizer).to(device)
        if device.type == "cpu":
            use_plain_attention(self.unet)
            self.text_encoder.set_attn_implementation("eager")
        self.modules: dict[str, nn.Module] = {"unet": self.unet, "text_encoder": self.text_encoder}
        self.predict: Predict = torch.compile(self.unet) if compiled else self.unet
        self.vae, self.device, self.seed = vae, device, seed
        self.scheduler = build_scheduler()
        self.pool = LatentPool(vae, self.tokenizer, folder, device, seed, executor, shard)
        self.empty = token_ids(self.tokenizer, [""]).to(device)

    def loss(self, first: int, count: int) -> dict[str, Tensor]:
        """Weighted squared error of v, and beside it the plain one, over uniform timesteps."""
        latents, ids = self.pool.batch(first, count)
        random = generator(self.device, self.seed, "unet", first)
        noise = torch.randn(latents.shape, generator=random, device=self.device)
        steps = spread_timesteps(count, random)
        dropped = torch.rand((count, 1), generator=random, device=self.device) < CAPTION_DROPOUT
        ids = torch.where(dropped, self.empty, ids)
        errors = v_errors(self.predict, self.text_encoder, self.scheduler, latents, noise, steps, ids)
        weights = loss_weights(self.scheduler.alphas_cumprod.to(self.device)[steps])
        return {"loss": (weights * errors).mean(), "v_loss": errors.detach().mean()}

    @torch.no_grad()
    def evaluate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """v-losses on captions of another seed: with the right caption, and with the next picture's (must be worse)."""
        unet, text_encoder = cast(UNet2DConditionModel, modules["unet"]), cast(CLIPTextModel, modules["text_encoder"])
        pictures, captions = draw_captioned(-1, 0, EVALUATION_PICTURES)
        latents = self.vae.encode(to_tensor(pictures, self.device)).latent_dist.mean * self.pool.scale
        ids = token_ids(self.tokenizer, captions).to(self.device)
        noise = torch.randn(latents.shape, generator=generator(self.device, "evaluate unet"), device=self.device)
        right, wrong = [], []
        for step in EVALUATION_TIMESTEPS:
            steps = torch.full((len(ids),), step, device=self.device)
            right.append(v_errors(unet, text_encoder, self.scheduler, latents, noise, steps, ids).mean())
            wrong.append(v_errors(unet, text_encoder, self.scheduler, latents, noise, steps, ids.roll(1, 0)).mean())
        return {
            "v_loss": torch.stack(right).mean().item(),
            "v_loss_wrong_caption": torch.stack(wrong).mean().item(),
        }


def spread_timesteps(count: int, random: torch.Generator) -> Tensor:
    """Timesteps int64 [count] in random order, each uniform in 0..999 and one from every `count`-th part of the range.

    The loss differs more between timesteps than between pictures, so that a batch's gradient has less noise (Kingma et
    al. 2021, arXiv 2107.00630, appendix I.1). In one short trial with this model that showed no gain.
    """
    places = torch.randperm(count, generator=random, device=random.device) / count
    start = torch.rand(1, generator=random, device=random.device)
    return ((places + start) % 1.0 * 1000.0).long().clamp(max=999)


def loss_weights(alphas_cumprod: Tensor) -> Tensor:
    """min(SNR, gamma) / (SNR + 1), min-SNR for v (Hang et al. 2023, arXiv 2303.09556, section 3.4), over a floor: [n].

    Noise beyond recognition has the largest errors, most of which nobody can predict. Without weights they drown what
    faces and markings are learnt from; without the floor, places and poses would be forgotten.
    """
    snr = alphas_cumprod / (1.0 - alphas_cumprod)
    return WEIGHT_FLOOR + snr.clamp(max=SNR_GAMMA) / (snr + 1.0)


def v_errors(
    unet: Predict,
    text_encoder: CLIPTextModel,
    scheduler: DDIMScheduler,
    latents: Tensor,
    noise: Tensor,
    steps: Tensor,
    ids: Tensor,
) -> Tensor:
    """Mean of (v_theta - v)^2 per picture, v = alpha * noise - sigma * latents (arXiv 2202.00512, section 4): [n]."""
    alphas = scheduler.alphas_cumprod.to(latents.device)[steps].view(-1, 1, 1, 1)
    alpha, sigma = alphas.sqrt(), (1.0 - alphas).sqrt()
    noised, target = alpha * latents + sigma * noise, alpha * noise - sigma * latents
    states = text_encoder(ids).last_hidden_state
    error: Tensor = unet(noised, steps, states).sample.float() - target
    return error.square().mean((1, 2, 3))
