"""The loss of a LoRA on fixed pictures, times and noise: what is random in a training loss hides what it learns.

Voronov et al., "Is This Loss Informative? Faster Text-to-Image Customization by Tracking Objective Dynamics", arXiv
2302.04841, section 4: the objective of equation 1,

    L = E[ |v_hat(z_t, t, c) - v|^2 ],

with the expectation over one set of (z, t, noise) that is drawn once and never again. It costs a forward pass, where a
judgement by images takes many.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dbexp.config.schema import TrainConfig
from dbexp.core.hashing import file_hash, seed_of
from dbexp.core.store import Store
from dbexp.models import GUIDANCE, SIZES, Conditioning, Model
from dbexp.models.beside import adapted, adapted_base
from dbexp.models.lora_file import merged
from dbexp.train.data import Training, TrainingData, prepare

VERSION = 1
DRAWS = 8
"""(t, noise) of each picture."""


def rows(training: Training) -> int:
    """Rows that one judgement passes through the denoiser."""
    return DRAWS * len(training.images)


def fixed_loss(training: Training, lora: Path, model: Model, store: Store) -> float:
    """The loss of the subject's pictures, unweighted, in the mean over `DRAWS` times of each; found where it is known.

    Times and guidance are those of plain training, whatever the run's own are, and noise depends on the noise seed
    alone: the runs of a sweep are judged on the same.

    Args:
        training: its pictures, prompt, resolution and seeds are used.
        lora: that was trained.
        model: the frozen base.
        store: where the value is kept.
    """
    inputs = {
        "version": VERSION,
        "model": model.identity,
        "dtype": str(model.dtype),
        "lora": file_hash(lora),
        "resolution": training.resolution,
        "images": [file_hash(path) for path in training.images],
        "prompt": training.prompt,
        "seeds": [training.seeds.data, training.seeds.noise],
    }
    if training.base_lora is not None:
        inputs["training_lora"] = training.base_lora.sha256

    def make(folder: Path) -> None:
        (folder / "loss").write_text(repr(_loss(training, lora, model, store)))

    return float((store.get("fixed_loss", inputs, make) / "loss").read_text())


@torch.no_grad()
def _loss(training: Training, lora: Path, model: Model, store: Store) -> float:
    (data,) = prepare([training], model, store)
    with merged(model, lora, 1.0, training.ranks(model.family).keys() & set(model.family.text_parts)):
        text = model.encode(data.text) if training.lora.text_encoder else data.text
    base_lora = None if training.base_lora is None else training.base_lora.path
    with adapted_base(model, base_lora), adapted(model, lora):
        errors = [_errors(data, text, picture, model) for picture in range(len(data.instance))]
    return float(torch.cat(errors).double().mean())


def _errors(data: TrainingData, text: Conditioning, picture: int, model: Model) -> Tensor:
    """|v_hat - v|^2 of a picture's first view, fp32 [DRAWS]."""
    training, bank = data.training, data.instance
    generator = torch.Generator().manual_seed(seed_of(training.seeds.noise, "fixed", picture))
    plain = TrainConfig()
    times = model.draw_times(DRAWS, generator, plain, training.resolution).to(model.device)
    noise = torch.randn((DRAWS, *bank.mean.shape[1:]), generator=generator).to(model.device)
    view = bank.first[picture]
    latents, sizes = bank.mean[view].expand_as(noise), bank.sizes[view].expand(DRAWS, -1)
    counts = [DRAWS, 0][: len(training.prompts)]
    guidance = torch.full_like(times, plain.guidance, dtype=torch.float32)
    conditioning = {**model.collate([(text, counts)]), SIZES: sizes, GUIDANCE: guidance}
    prediction = model.predict(model.add_noise(latents, noise, times), times, conditioning).float()
    return (prediction - model.target(latents, noise, times)).square().flatten(1).mean(1)
