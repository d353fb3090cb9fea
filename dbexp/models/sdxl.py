"""Stable Diffusion XL (Podell et al., arXiv 2307.01952): Stable Diffusion with a second text encoder, and a UNet that
is told the size of the picture.

Shapes: B rows, L tokens, D1 and D2 the widths of the two text encoders, C latent channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.store import Store
from dbexp.models import SIZES, VAE, Batch, Conditioning, clip, start
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.inpaint import MASK_THRESHOLD
from dbexp.models.known import WHOLE, Known, Settings
from dbexp.models.sd import StableDiffusion

_SIZES = 6  # see `dbexp.models.SIZES`
_KNOWN_SIZES = {"addition_time_embed_dim": (WHOLE,), "projection_class_embeddings_input_dim": (WHOLE,)}


class StableDiffusionXL(StableDiffusion):
    """Parts: vae, unet, text_encoder (CLIP ViT-L), text_encoder_2 (OpenCLIP ViT-bigG).

    Conditioning: `states` [B, L, D1 + D2], the last states but one of both encoders, side by side; `pooled` [B, D2],
    what the second says of the whole prompt. So adapters in the last layer of the first encoder never learn; they are
    there because LoRA files of other trainers have them.

    The VAE overflows in fp16: latents go into it and come out of it here, never in a pipeline, which would move it to
    the precision of the UNet.
    """

    family = FAMILIES["sdxl"]
    classes: ClassVar = {**StableDiffusion.classes, "text_encoder_2": "transformers.CLIPTextModelWithProjection"}
    layout = ("vae", "unet", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    tokenizers: ClassVar = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    pipelines: ClassVar = {
        "text": "StableDiffusionXLPipeline",
        "image": "StableDiffusionXLImg2ImgPipeline",
        "inpaint": "StableDiffusionXLInpaintPipeline",
    }
    extras: ClassVar = {"image_encoder": None, "feature_extractor": None, "add_watermarker": False}
    kohya_prefixes: ClassVar = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    output = "latent"
    known: ClassVar[Known] = {
        "unet": {**StableDiffusion.known["unet"], "addition_embed_type": ("text_time",), **_KNOWN_SIZES},
        "vae": {name: values for name, values in StableDiffusion.known["vae"].items() if "latents" not in name},
        "text_encoder": clip.KNOWN_ENCODER,
        "text_encoder_2": clip.KNOWN_ENCODER,
        "scheduler": StableDiffusion.known["scheduler"],
    }

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        yield from super().disagreements(settings)
        unet, pooled = settings["unet"], settings["text_encoder_2"].get("projection_dim")
        width, read = unet.get("addition_time_embed_dim"), unet.get("projection_class_embeddings_input_dim")
        if width is None or read is None or pooled is None:
            return
        if read != (numbers := pooled + _SIZES * width):
            yield (
                "unet",
                f"is told {read} numbers of picture and prompt (projection_class_embeddings_input_dim), where "
                f"{_SIZES} sizes and the pooled prompt are {numbers}",
            )

    @property
    def vae_dtype(self) -> torch.dtype:
        return torch.float32

    # -- text -------------------------------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        return {
            "ids": self.token_ids("text_encoder", prompts),
            "ids_2": self.token_ids("text_encoder_2", prompts),
        }

    def encode(self, tokens: Conditioning) -> Conditioning:
        first = self.part("text_encoder")(tokens["ids"], output_hidden_states=True)
        second = self.part("text_encoder_2")(tokens["ids_2"], output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"states": states, "pooled": second.text_embeds}

    def unconditional(self, negative: str) -> Conditioning:
        row = super().unconditional(negative)
        if negative or not self._settings("model_index.json").get("force_zeros_for_empty_prompt", True):
            return row
        # what the UNet was taught to take for no text; an encoded empty prompt draws visibly other pictures
        return {name: torch.zeros_like(value) for name, value in row.items()}

    # -- latents ----------------------------------------------------------------------------------------------------

    @property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [C, 1, 1] of latents; what comes out of the VAE unless the checkpoint says otherwise."""
        config: Any = self.part(VAE).config
        pair = [config.get("latents_mean") or [0.0], config.get("latents_std") or [1.0]]
        mean, std = (torch.tensor(values, device=self.device).view(-1, 1, 1) for values in pair)
        return mean, std

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae: Any = self.part(VAE)
        posterior = vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        (mean, std), scale = self._statistics, float(vae.config.scaling_factor)
        return ((posterior.mean - mean) * scale / std).contiguous(), (posterior.std * scale / std).contiguous()

    def decode(self, pipe: Any, latents: Any, batch: Batch) -> NDArray[np.floating[Any]]:
        mean, std = self._statistics
        return super().decode(pipe, latents.float() * std / float(pipe.vae.config.scaling_factor) + mean, batch)

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        sample: Tensor = self.part("unet")(
            noisy.to(self.dtype),
            times,
            encoder_hidden_states=conditioning["states"].to(self.dtype),
            added_cond_kwargs={"text_embeds": conditioning["pooled"].to(self.dtype), "time_ids": conditioning[SIZES]},
        ).sample
        return sample

    # -- sampling ---------------------------------------------------------------------------------------------------

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        arguments = super().call(pipe, batch)
        if batch.image is not None:
            latents, generators = start.drawn_latents(self.encode_images, batch.image, batch.seeds)
            arguments |= {"image": latents.to(self.dtype), "generator": generators}
            if batch.mask is not None and self.needs_mask:
                hidden = np.asarray(batch.mask)[..., None] >= MASK_THRESHOLD
                latents, _ = self.encode_images(start.pixels(batch.image) * torch.from_numpy(~hidden).permute(2, 0, 1))
                arguments["masked_image_latents"] = latents.to(self.dtype)
        return arguments

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        assert not isinstance(batch.text, tuple)
        arguments = {"prompt_embeds": batch.text["states"], "pooled_prompt_embeds": batch.text["pooled"]}
        if batch.negative is not None:
            arguments["negative_prompt_embeds"] = batch.negative["states"]
            arguments["negative_pooled_prompt_embeds"] = batch.negative["pooled"]
        return arguments


def _random() -> dict[str, Any]:
    from dbexp.models import random_sdxl

    return {"family": "sdxl", "version": random_sdxl.VERSION}


def _build(folder: Path) -> None:
    from dbexp.models import random_sdxl

    random_sdxl.build_random(folder)


_SOURCE = Source(random=_random, build=_build, check=check_pipeline(StableDiffusionXL))


def load(cfg: ModelConfig, store: Store) -> StableDiffusionXL:
    """See `open_checkpoint`."""
    return open_checkpoint(StableDiffusionXL, _SOURCE, cfg, store)
