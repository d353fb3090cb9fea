"""FLUX.2 klein (Black Forest Labs, 2026): a VAE, a transformer that learnt by flow matching, Qwen3 that reads the text.

LoRAs are trained on a base checkpoint; they also work on the distilled one of its size, which draws in 4 steps.

Shapes: B rows; h x w tokens of the picture, 16 x 16 pixels and 128 channels each (2 x 2 latents of 32); L tokens
of text, each as wide as three states of the encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Batch
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.flow import KNOWN_SCHEDULES
from dbexp.models.flux2 import KNOWN_DENOISER, KNOWN_VAE, Flux2Model
from dbexp.models.known import Known
from dbexp.models.qwen import KNOWN_ENCODER, QwenText


class Flux2Klein(QwenText, Flux2Model):
    """See `Flux2Model`. The encoder's layers are those of its pipeline; a training script of diffusers takes others,
    which were meant for FLUX.2 dev."""

    family = FAMILIES["flux2_klein"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKLFlux2",
        "transformer": "diffusers.Flux2Transformer2DModel",
        "text_encoder": "transformers.Qwen3ForCausalLM",
    }
    pipelines: ClassVar = {"text": "Flux2KleinPipeline", "inpaint": "Flux2KleinInpaintPipeline"}
    states = (9, 18, 27)
    thinks = False
    known: ClassVar[Known] = {
        "transformer": {**KNOWN_DENOISER, "guidance_embeds": (False,)},
        "vae": KNOWN_VAE,
        "text_encoder": KNOWN_ENCODER,
        "scheduler": KNOWN_SCHEDULES,
    }

    @property
    def distilled(self) -> bool:
        """Whether it was taught to draw in a few steps, without a second pass for what guidance steers away from."""
        return bool(self._settings("model_index.json").get("is_distilled", False))

    def guided(self, guidance: float) -> bool:
        return guidance > 1 and not self.distilled

    def guidance(self, value: float) -> dict[str, Any]:
        return {"guidance_scale": 1.0 if self.distilled else value}

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        if task == "inpaint" and sampler == "unipc":
            raise ConfigError("sampler=unipc: cannot put back what the mask keeps; give euler, or null")
        pipe = super().pipeline(sampler, task)
        pipe.register_to_config(is_distilled=self.distilled)
        return pipe

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        arguments = super().call(pipe, batch)
        if batch.image is not None:
            # as latents: the pipeline would encode in its own precision, and draw no more than a megapixel
            pixels = torch.from_numpy(np.array(batch.image)).permute(2, 0, 1)[None] / 255
            arguments["image"] = self._patches(2 * pixels - 1).to(self.dtype)
        return arguments


def _random() -> dict[str, Any]:
    from dbexp.models import random_flux2_klein

    return {"family": "flux2_klein", "version": random_flux2_klein.VERSION}


def _build(folder: Path) -> None:
    from dbexp.models import random_flux2_klein

    random_flux2_klein.build_random(folder)


_SOURCE = Source(random=_random, build=_build, check=check_pipeline(Flux2Klein))


def load(cfg: ModelConfig, store: Store) -> Flux2Klein:
    """See `open_checkpoint`."""
    return open_checkpoint(Flux2Klein, _SOURCE, cfg, store)
