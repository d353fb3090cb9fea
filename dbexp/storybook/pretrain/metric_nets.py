"""The untrained metric networks in the formats of timm, open_clip and lpips, sized for 64 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dbexp.storybook.pretrain.architecture import TEXT_LENGTH
from dbexp.storybook.pretrain.tokenizer import build_tokenizer, save_tokenizer
from dbexp.storybook.world.world import PICTURE_SIZE

DINO_NAME = "vit_tiny_patch16_224"
DINO_KWARGS: dict[str, Any] = {
    "img_size": PICTURE_SIZE,
    "patch_size": 8,
    "embed_dim": 160,
    "depth": 5,
    "num_heads": 5,
    "num_classes": 0,
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
SQUEEZENET_WIDTHS = (64, 128, 256, 384, 384, 512, 512)
"""Channels of the seven layers that lpips reads out of torchvision's squeezenet1_1."""
LPIPS_SLICES = (2, 5, 8, 10, 11, 12, 13)
"""Ends of those layers in `features` (Zhang et al. 2018, arXiv 1801.03924; package lpips 0.1)."""
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""The scaling layer of lpips, for inputs in [-1, 1]."""


def build_dino() -> nn.Module:
    """A timm ViT of about 1.6 M parameters without a head: CLS features [n, 160]."""
    model: nn.Module = timm.create_model(DINO_NAME, pretrained=False, **DINO_KWARGS)
    return model


def clip_config() -> dict[str, Any]:
    """The `model_cfg` of open_clip; a QuickGELU model, like the OpenAI weights."""
    return {
        "embed_dim": 128,
        "quick_gelu": True,
        "vision_cfg": {"image_size": PICTURE_SIZE, "patch_size": 8, "width": 160, "head_width": 32, "layers": 4},
        "text_cfg": {
            "context_length": TEXT_LENGTH,
            "vocab_size": len(build_tokenizer()),
            "width": 128,
            "heads": 4,
            "layers": 3,
            "hf_tokenizer_name": "storybook",  # any non-empty name: local-dir then reads the tokenizer beside it
        },
    }


def build_clip() -> nn.Module:
    """An open_clip model of about 2.4 M parameters: `encode_image` and `encode_text` give [n, 128]."""
    config = clip_config()
    text = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
    model: nn.Module = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], text, quick_gelu=True)
    return model


class PerceptualDistance(nn.Module):
    """LPIPS on a SqueezeNet trunk: the same computation as lpips, kept trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torchvision.models.squeezenet1_1(weights=None).features
        self.heads = nn.ParameterList(nn.Parameter(torch.full((width,), 1.0 / width)) for width in SQUEEZENET_WIDTHS)
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE).view(1, 3, 1, 1), persistent=False)

    def layers(self, pictures: Tensor) -> list[Tensor]:
        """The seven feature maps of pictures [n, 3, h, w] in [-1, 1]."""
        hidden = (pictures - self.get_buffer("shift")) / self.get_buffer("scale")
        maps, start = [], 0
        for end in LPIPS_SLICES:
            hidden = self.features[start:end](hidden)
            maps.append(hidden)
            start = end
        return maps

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Distances of two batches of feature maps: [n]. Weights are used by their absolute value."""
        total = first[0].new_zeros(len(first[0]))
        for a, b, head in zip(first, second, self.heads, strict=True):
            difference = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square()
            total = total + (difference * head.abs().view(1, -1, 1, 1)).sum(1).mean((1, 2))
        return total


def save_dino(model: nn.Module, folder: Path) -> None:
    """The timm state dict: `dino.safetensors` (fp16)."""
    _save(model.state_dict(), folder / "dino.safetensors")


def save_clip(model: nn.Module, folder: Path) -> None:
    """A folder that open_clip loads as `local-dir:`; the tokenizer lies beside the weights."""
    save_tokenizer(folder)
    preprocess = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": clip_config(), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _save(model.state_dict(), folder / "open_clip_model.safetensors")


def save_lpips(model: PerceptualDistance, folder: Path) -> None:
    """The trunk with torchvision's names and the heads with those of lpips (fp16)."""
    trunk = {f"features.{name}": value for name, value in model.features.state_dict().items()}
    _save(trunk, folder / "trunk.safetensors")
    heads = {f"lin{i}.model.1.weight": head.detach().abs().view(1, -1, 1, 1) for i, head in enumerate(model.heads)}
    _save(heads, folder / "heads.safetensors")


def read_lpips(folder: Path) -> dict[str, Tensor]:
    """What `save_lpips` wrote, as the state of a `PerceptualDistance`, fp32."""
    heads = load_file(folder / "heads.safetensors")
    state = {name: value.float() for name, value in load_file(folder / "trunk.safetensors").items()}
    for i in range(len(SQUEEZENET_WIDTHS)):
        state[f"heads.{i}"] = heads[f"lin{i}.model.1.weight"].float().flatten()
    return state


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().half().contiguous() for name, value in tensors.items()}, path)
