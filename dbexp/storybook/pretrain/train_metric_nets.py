"""Stages `dino`, `clip` and `lpips`: the metric networks, on the same world and its broad gamut.

`dino` and the image tower of `clip` learn who a character is (the same one in another place, pose and outfit is near,
everybody else is far); `clip` learns what a caption says; `lpips` learns how different two pictures look.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dbexp.storybook.pretrain.latent_pool import token_ids
from dbexp.storybook.pretrain.metric_nets import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    PerceptualDistance,
    build_clip,
    build_dino,
)
from dbexp.storybook.pretrain.pairs import NO_COLOUR, Pairs, draw_pairs, draw_subject_views
from dbexp.storybook.pretrain.stream import Pictures, Stream, draw_broad
from dbexp.storybook.pretrain.tokenizer import build_tokenizer
from dbexp.storybook.pretrain.train_vae import to_tensor
from dbexp.storybook.pretrain.training import Recipe, generator
from dbexp.storybook.world.subjects import SUBJECTS

CPU_RECIPES = {
    "dino": Recipe(samples=600_000, batch=64, lr=1e-3),
    "clip": Recipe(samples=800_000, batch=64, lr=1e-3),
    "lpips": Recipe(samples=300_000, batch=32, lr=5e-4),
}
GPU_RECIPES = {
    "dino": Recipe(samples=1_000_000, batch=512, lr=1e-3, ema_samples=100_000),
    "clip": Recipe(samples=1_200_000, batch=512, lr=1e-3, ema_samples=100_000),
    "lpips": Recipe(samples=400_000, batch=256, lr=1e-3, ema_samples=50_000),
}
TEMPERATURE = 0.1
"""Of the identity loss: soft enough that one character's pictures come near 1 and others near 0."""
GALLERY = 128
"""Identities, or captions, among which evaluation looks for the right one."""
VIEWS = 20
"""Pictures of each kind per held-out subject in evaluation."""


def identity_loss(features: Tensor, others: Tensor) -> Tensor:
    """Symmetric InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) between two pictures of each character."""
    logits = F.normalize(features.float(), dim=1) @ F.normalize(others.float(), dim=1).T / TEMPERATURE
    labels = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def caption_loss(pictures: Tensor, texts: Tensor, scale: Tensor, captions: list[str]) -> Tensor:
    """CLIP's loss (Radford et al. 2021, arXiv 2103.00020, figure 3); every copy of a caption counts as right."""
    logits = scale * F.normalize(pictures.float(), dim=1) @ F.normalize(texts.float(), dim=1).T
    numbers = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    codes = torch.tensor([numbers[text] for text in captions], device=logits.device)
    same = (codes[:, None] == codes[None, :]).float()
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def retrieval(first: Tensor, second: Tensor) -> float:
    """Share of rows of `first` whose nearest row of `second` is the one with the same index."""
    similarity = F.normalize(first.float(), dim=1) @ F.normalize(second.float(), dim=1).T
    found = similarity.argmax(1) == torch.arange(len(first), device=first.device)
    return found.float().mean().item()


def _standardise(pictures: Pictures, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> Tensor:
    """uint8 pictures to what a network reads: [n, 3, 64, 64], minus the mean, over the standard deviation."""
    tensor = to_tensor(pictures, device) / 2 + 0.5
    shape = (1, 3, 1, 1)
    return (tensor - torch.tensor(mean, device=device).view(shape)) / torch.tensor(std, device=device).view(shape)


class DinoTask:
    """A ViT that tells characters apart."""

    name = "dino"

    def __init__(self, device: torch.device, seed: int, executor: Executor | None = None) -> None:
        torch.manual_seed(seed)
        self.modules: dict[str, nn.Module] = {"dino": build_dino().to(device)}
        self.device, self.pairs = device, Stream(draw_pairs, seed, executor)

    def loss(self, first: int, count: int) -> dict[str, Tensor]:
        """The identity loss."""
        pairs = self.pairs.take(first // 2, count // 2)
        rows = pairs.recognisable
        features = self._features(self.modules["dino"], np.concatenate([pairs.first[rows], pairs.second[rows]]))
        return {"loss": identity_loss(*features.chunk(2))}

    @torch.no_grad()
    def evaluate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """Retrieval among unseen characters; held-out subjects against themselves in context, and against strangers."""
        pairs, model = draw_pairs(-1, 0, 2 * GALLERY), modules["dino"]
        rows = pairs.recognisable[:GALLERY]
        first, second = (self._features(model, side[rows]) for side in (pairs.first, pairs.second))
        figures = {"same_found": retrieval(first, second)}
        for name in SUBJECTS:
            views = draw_subject_views(name, VIEWS)
            real, oracle, strangers = (F.normalize(self._features(model, view), dim=1) for view in views)
            figures[f"{name}_oracle"] = (real @ oracle.T).mean().item()
            figures[f"{name}_strangers"] = (real @ strangers.T).mean().item()
        return figures

    def _features(self, model: nn.Module, pictures: Pictures) -> Tensor:
        features: Tensor = model(_standardise(pictures, IMAGENET_MEAN, IMAGENET_STD, self.device))
        return features


class ClipTask:
    """An open_clip model: captions, and identities on the image tower."""

    name = "clip"

    def __init__(self, device: torch.device, seed: int, executor: Executor | None = None) -> None:
        torch.manual_seed(seed)
        self.modules: dict[str, nn.Module] = {"clip": build_clip().to(device)}
        self.tokenizer = build_tokenizer()
        self.device, self.pairs = device, Stream(draw_pairs, seed, executor)

    def loss(self, first: int, count: int) -> dict[str, Tensor]:
        """CLIP's loss on all pictures plus half the identity loss on the pairs."""
        model: Any = self.modules["clip"]
        pairs = self.pairs.take(first // 2, count // 2)
        captions = [*pairs.first_captions, *pairs.second_captions]
        pictures = self._pictures(model, np.concatenate([pairs.first, pairs.second]))
        texts = model.encode_text(token_ids(self.tokenizer, captions).to(self.device))
        words = caption_loss(pictures, texts, model.logit_scale.exp().clamp(max=100.0), captions)
        rows = torch.from_numpy(pairs.recognisable).to(self.device)
        who = identity_loss(*(side[rows] for side in pictures.chunk(2)))
        return {"loss": words + 0.5 * who, "captions": words, "identity": who}

    @torch.no_grad()
    def evaluate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """Retrieval of the caption among distinct ones, and of the character, on unseen pictures."""
        model: Any = modules["clip"]
        pairs = draw_pairs(-1, 0, 4 * GALLERY)
        distinct = list(dict.fromkeys(pairs.first_captions))[:GALLERY]
        rows = [pairs.first_captions.index(text) for text in distinct]
        texts = model.encode_text(token_ids(self.tokenizer, distinct).to(self.device))
        faces = pairs.recognisable[:GALLERY]
        first, second = (self._pictures(model, side[faces]) for side in (pairs.first, pairs.second))
        return {
            "caption_found": retrieval(self._pictures(model, pairs.first[rows]), texts),
            "same_found": retrieval(first, second),
        }

    def _pictures(self, model: Any, pictures: Pictures) -> Tensor:
        features: Tensor = model.encode_image(_standardise(pictures, CLIP_MEAN, CLIP_STD, self.device))
        return features


class LpipsTask:
    """A SqueezeNet trunk that names what a scene consists of, and heads that order distortions by their strength."""

    name = "lpips"

    def __init__(self, device: torch.device, seed: int, executor: Executor | None = None) -> None:
        torch.manual_seed(seed)
        self.modules: dict[str, nn.Module] = {
            "lpips": PerceptualDistance().to(device),
            "classifier": nn.Linear(512, sum(Pairs.LABEL_SIZES)).to(device),
        }
        self.device, self.seed, self.pairs = device, seed, Stream(draw_pairs, seed, executor)

    def loss(self, first: int, count: int) -> dict[str, Tensor]:
        """Cross-entropy of class, place, outfit, property and colour; for the heads alone, the order of distortions."""
        model = cast(PerceptualDistance, self.modules["lpips"])
        pairs = self.pairs.take(first // 2, count // 2)
        pictures = to_tensor(np.concatenate([pairs.first, pairs.second]), self.device)
        labels = torch.from_numpy(np.concatenate([pairs.first_labels, pairs.second_labels])).to(self.device)
        maps = model.layers(pictures)
        logits = self.modules["classifier"](maps[-1].mean((2, 3))).float().split(Pairs.LABEL_SIZES, dim=1)
        scene = torch.stack(
            [F.cross_entropy(part, labels[:, i], ignore_index=NO_COLOUR) for i, part in enumerate(logits)]
        ).sum()
        ranking = self._ranking(model, pictures, maps, first)
        return {"loss": scene + ranking, "scene": scene, "ranking": ranking}

    @torch.no_grad()
    def evaluate(self, modules: Mapping[str, nn.Module]) -> dict[str, float]:
        """Share of held-out pairs of distortions that the distance puts in the right order."""
        model = cast(PerceptualDistance, modules["lpips"])
        pictures = to_tensor(draw_broad(-1, 0, 64), self.device)
        maps = model.layers(pictures)
        mild, strong = distorted(pictures, generator(self.device, "evaluate lpips"))
        right = model.distance(maps, model.layers(mild)) < model.distance(maps, model.layers(strong))
        return {"order_right": right.float().mean().item()}

    def _ranking(self, model: PerceptualDistance, pictures: Tensor, maps: list[Tensor], first: int) -> Tensor:
        with torch.no_grad():
            mild, strong = distorted(pictures, generator(self.device, self.seed, "lpips", first))
            mild_maps, strong_maps = model.layers(mild), model.layers(strong)
        reference = [layer.detach() for layer in maps]
        gap = model.distance(reference, strong_maps) - model.distance(reference, mild_maps)
        return F.softplus(-10.0 * gap.float()).mean()


def distorted(pictures: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A mild and a strong distortion of each picture, as a person would judge them, not as pixels do.

    Mild: a shift by one to three pixels, a faint tint, faint noise. Strong: blur, heavy noise, another picture shining
    through, a quarter of another picture. A shift changes more pixels than most of the strong ones.

    Args:
        pictures: [n, 3, h, w] in [-1, 1].
        rng: on the pictures' device.

    Returns:
        Mildly and strongly distorted pictures, of the same shape.
    """
    device, n = pictures.device, len(pictures)
    noise = torch.randn(pictures.shape, generator=rng, device=device)
    tint = torch.randn((n, 3, 1, 1), generator=rng, device=device)
    shift = int(torch.randint(1, 4, (), generator=rng, device=device))
    other = pictures.roll(1, 0)
    corner = torch.zeros_like(pictures)
    corner[:, :, : pictures.shape[2] // 2, : pictures.shape[3] // 2] = 1.0
    blurred = F.interpolate(F.avg_pool2d(pictures, 4), scale_factor=4.0, mode="bilinear")
    shifted = pictures.roll(shift, 3), pictures.roll(-shift, 2)
    mild = torch.stack([*shifted, pictures + 0.1 * tint, pictures + 0.05 * noise])
    strong = torch.stack(
        [blurred, pictures + 0.25 * noise, torch.lerp(pictures, other, 0.35), torch.lerp(pictures, other, corner)]
    )
    rows = torch.arange(n, device=device)
    kinds = torch.randint(4, (2, n), generator=rng, device=device)
    return mild[kinds[0], rows].clamp(-1, 1), strong[kinds[1], rows].clamp(-1, 1)


TASKS: dict[str, type[DinoTask] | type[ClipTask] | type[LpipsTask]] = {
    "dino": DinoTask,
    "clip": ClipTask,
    "lpips": LpipsTask,
}
