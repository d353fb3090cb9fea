"""Go on from an exported model where its pre-training folder is gone: checkpoints made of the shipped weights.

Weights come back in the precision they were shipped in (fp16). The optimizers' moments, and what is never shipped (the
classifier that teaches the perceptual trunk), start anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel

from dbexp.core.errors import ConfigError
from dbexp.storybook.pretrain.metric_nets import read_lpips
from dbexp.storybook.pretrain.training import atomic_save

Weights = Mapping[str, Tensor]

_READERS: dict[str, dict[str, Callable[[Path], Weights]]] = {
    "vae": {"vae": lambda model: AutoencoderKL.from_pretrained(model / "vae").state_dict()},
    "unet": {
        "unet": lambda model: UNet2DConditionModel.from_pretrained(model / "unet").state_dict(),
        "text_encoder": lambda model: CLIPTextModel.from_pretrained(model / "text_encoder").state_dict(),
    },
    "dino": {"dino": lambda model: load_file(model / "metrics" / "dino" / "dino.safetensors")},
    "clip": {"clip": lambda model: load_file(model / "metrics" / "clip" / "open_clip_model.safetensors")},
    "lpips": {"lpips": lambda model: read_lpips(model / "metrics" / "lpips")},
}
"""Stage -> its modules -> how to read their weights from an exported folder."""


def start_from(model: Path, out: Path) -> list[str]:
    """Write a first checkpoint for every stage that the model has and `out` has not; returns their names.

    Args:
        model: an exported folder, such as dbexp/storybook/weights.
        out: a pre-training folder, new or not.

    Raises:
        ConfigError: there is no model.
    """
    if not (model / "model_index.json").is_file():
        raise ConfigError(f"--from={model}: an exported model is expected there, a folder with model_index.json")
    started = []
    for stage, readers in _READERS.items():
        checkpoint = out / stage / "checkpoint.pt"
        place = model if stage in ("vae", "unet") else model / "metrics" / stage
        if checkpoint.exists() or not place.exists():
            continue
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        modules = {name: _floats(read(model)) for name, read in readers.items()}
        atomic_save({"seen": 0, "seconds": 0.0, "modules": modules, "average": modules}, checkpoint)
        started.append(stage)
    return started


def _floats(tensors: Weights) -> Weights:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
