"""Z-Image (Tongyi Lab, arXiv 2511.22699): a VAE, a transformer that learnt by flow matching, Qwen3 that reads the text.

LoRAs are trained on the base checkpoint; trained on Turbo, which was distilled for eight steps, they would undo that.

Shapes: B rows; h x w latents of 16 channels, 8 x 8 pixels each; L tokens of text, of which a row's mask tells those
that are not padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import VAE, Batch, Conditioning
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.flow import KNOWN_SCHEDULES, FlowMatching
from dbexp.models.known import WHOLE, Known, Settings
from dbexp.models.native_names import NativeNames
from dbexp.models.qwen import KNOWN_ENCODER, QwenText
from dbexp.models.shifted_latents import KNOWN_VAE

_STATES = -2
"""The encoder's layer whose states the denoiser reads."""
_STACKS = ("layers", "noise_refiner", "context_refiner")
_BLOCKS = tuple(f"{stack}." for stack in _STACKS)
_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
# what stands outside the blocks sees the tokens of all rows as one list, in which lanes would have no rows
_SITES = {
    "attention": _ATTENTION,
    "attention+mlp": (*_ATTENTION, ".feed_forward.w1", ".feed_forward.w2", ".feed_forward.w3"),
    "linear": ("",),
}

_NATIVE: NativeNames = {
    **{
        f"{block}.{{}}.attention.qkv": tuple(f"{block}.{{}}.attention.to_{name}" for name in "qkv") for block in _STACKS
    },
    **{f"{block}.{{}}.attention.out": (f"{block}.{{}}.attention.to_out.0",) for block in _STACKS},
    "x_embedder": ("all_x_embedder.2-1",),
    "final_layer.linear": ("all_final_layer.2-1.linear",),
    "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
}


def sites(denoiser: nn.Module, preset: str) -> tuple[str, ...]:
    """Names of the linear layers of a denoiser that a preset adapts."""
    layers = (name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name in layers if name.startswith(_BLOCKS) and name.endswith(_SITES[preset]))


class ZImage(QwenText, FlowMatching, Checkpoint):
    """Parts: vae, transformer, text_encoder. Conditioning: `states` [B, L, D] and `mask` [B, L], bool."""

    family = FAMILIES["z_image"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKL",
        "transformer": "diffusers.ZImageTransformer2DModel",
        "text_encoder": "transformers.Qwen3Model",
    }
    layout = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler")
    pipelines: ClassVar = {
        "text": "ZImagePipeline",
        "image": "ZImageImg2ImgPipeline",
        "inpaint": "ZImageInpaintPipeline",
    }
    samplers: ClassVar = {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    }
    native = _NATIVE
    bakes_alpha = True
    thinks = True
    known: ClassVar[Known] = {
        "transformer": {
            "_class_name": ("ZImageTransformer2DModel",),
            "all_patch_size": ([2],),
            "all_f_patch_size": ([1],),
            "in_channels": (WHOLE,),
            "siglip_feat_dim": (None,),
            "t_scale": (1000,),
        },
        "vae": KNOWN_VAE,
        "text_encoder": KNOWN_ENCODER,
        "scheduler": KNOWN_SCHEDULES,
    }

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        denoiser, vae = settings["transformer"], settings["vae"]
        channels = vae.get("latent_channels", 4)
        if (read := denoiser.get("in_channels", 16)) != channels:
            yield (
                "transformer",
                f"reads {read} channels (in_channels), the VAE has latent_channels={channels}",
            )
        width, text = denoiser.get("cap_feat_dim"), settings["text_encoder"].get("hidden_size")
        if None not in (width, text) and width != text:
            yield "transformer", f"reads text of width {width} (cap_feat_dim), where the encoder's is {text}"
        if "shift_factor" not in vae:
            yield "vae", "says no shift_factor"

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        return sites(self.outline(part), preset)

    def encode(self, tokens: Conditioning) -> Conditioning:
        encoder, mask = self.part("text_encoder"), tokens["mask"].bool()
        read = encoder(tokens["ids"], mask, output_hidden_states=True, use_cache=False)
        return {"states": read.hidden_states[_STATES], "mask": mask}

    # -- latents ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae: Any = self.part(VAE)
        latents = vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist.mode()
        mean = ((latents.float() - vae.config.shift_factor) * vae.config.scaling_factor).contiguous()
        return mean, torch.zeros_like(mean)  # trained on the posterior's mode

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        images = list(noisy.to(self.dtype)[:, :, None].unbind())  # each a film of one picture
        # it counts from noise (0) to picture (1), and predicts the velocity that way round
        velocity = self.part("transformer")(images, 1 - times, _texts(conditioning, self.dtype), return_dict=False)[0]
        return -torch.stack(velocity)[:, :, 0]

    # -- sampling ---------------------------------------------------------------------------------------------------

    def guidance(self, value: float) -> dict[str, Any]:
        # of v_text + g (v_text - v_negative), where 0 is none
        return {"guidance_scale": max(value - 1, 0.0)}

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        if task != "text" and sampler == "unipc":
            raise ConfigError("sampler=unipc: cannot start from an image; give euler, or null")
        return super().pipeline(sampler, task)

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        arguments = super().call(pipe, batch)
        if isinstance(batch.text, tuple):
            arguments["max_sequence_length"] = self.text_tokens
        if "Euler" not in type(pipe.scheduler).__name__:
            # the pipeline's own, as numbers to compute with: it hands on a list
            arguments["sigmas"] = np.linspace(1, 1 / batch.steps, batch.steps)
        return arguments

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        assert not isinstance(batch.text, tuple)
        # pipelines hand images to the VAE in the precision of the text, which the denoiser rounds to its own anyhow
        arguments = {"prompt_embeds": _texts(batch.text, self.vae_dtype)}
        if batch.negative is not None:
            arguments["negative_prompt_embeds"] = _texts(batch.negative, self.vae_dtype)
        return arguments


def _texts(conditioning: Conditioning, dtype: torch.dtype) -> list[Tensor]:
    """The tokens [n, D] of each row, without padding: the denoiser pads each to a multiple of 32 itself, with a token
    that it has learnt, and hides what it needs beyond that to put rows side by side."""
    mask = conditioning["mask"]
    return list(conditioning["states"].to(dtype)[mask].split(mask.sum(1).tolist()))


def _random() -> dict[str, Any]:
    from dbexp.models import random_z_image

    return {"family": "z_image", "version": random_z_image.VERSION}


def _build(folder: Path) -> None:
    from dbexp.models import random_z_image

    random_z_image.build_random(folder)


_SOURCE = Source(random=_random, build=_build, check=check_pipeline(ZImage))


def load(cfg: ModelConfig, store: Store) -> ZImage:
    """See `open_checkpoint`."""
    return open_checkpoint(ZImage, _SOURCE, cfg, store)
