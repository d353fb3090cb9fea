"""FLUX.1 dev (Black Forest Labs, 2024): a VAE, a transformer that learnt by flow matching and was then taught to read
guidance as a number, and two text encoders, CLIP's and T5's.

Shapes: B rows; latents of 16 channels, 8 x 8 pixels each, of which 2 x 2 are a token for the denoiser; L tokens of
text; D the width of T5's states, D1 that of what CLIP says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import GUIDANCE, Batch, Conditioning, Cut, LoraFile, clip, t5
from dbexp.models.clip import ClipText
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.flow import KNOWN_SCHEDULES, FlowMatching
from dbexp.models.known import WHOLE, Known, Settings
from dbexp.models.lora_file import kohya_layout, native_layout
from dbexp.models.native_names import NativeNames
from dbexp.models.shifted_latents import KNOWN_VAE, ShiftedLatents
from dbexp.models.t5 import T5Text

_PATCH = 4
"""Latents of a token."""
_PUBLISHED_WIDTH = 3072
_ATTENTION = (
    *(".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0"),
    *(".attn.add_q_proj", ".attn.add_k_proj", ".attn.add_v_proj", ".attn.to_add_out"),
)
# single blocks compute attention and feed-forward side by side, with one layer behind both: that is `linear`'s
_SITES = {
    "attention": _ATTENTION,
    "attention+mlp": (*_ATTENTION, ".ff.net.0.proj", ".ff.net.2", ".ff_context.net.0.proj", ".ff_context.net.2"),
    "linear": ("",),
}
_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_NATIVE: NativeNames = {
    "double_blocks.{}.img_attn.qkv": tuple(f"{_DOUBLE}.attn.to_{name}" for name in "qkv"),
    "double_blocks.{}.img_attn.proj": (f"{_DOUBLE}.attn.to_out.0",),
    "double_blocks.{}.img_mlp.0": (f"{_DOUBLE}.ff.net.0.proj",),
    "double_blocks.{}.img_mlp.2": (f"{_DOUBLE}.ff.net.2",),
    "double_blocks.{}.img_mod.lin": (f"{_DOUBLE}.norm1.linear",),
    "double_blocks.{}.txt_attn.qkv": tuple(f"{_DOUBLE}.attn.add_{name}_proj" for name in "qkv"),
    "double_blocks.{}.txt_attn.proj": (f"{_DOUBLE}.attn.to_add_out",),
    "double_blocks.{}.txt_mlp.0": (f"{_DOUBLE}.ff_context.net.0.proj",),
    "double_blocks.{}.txt_mlp.2": (f"{_DOUBLE}.ff_context.net.2",),
    "double_blocks.{}.txt_mod.lin": (f"{_DOUBLE}.norm1_context.linear",),
    "single_blocks.{}.linear1": (*(f"{_SINGLE}.attn.to_{name}" for name in "qkv"), f"{_SINGLE}.proj_mlp"),
    "single_blocks.{}.linear2": (f"{_SINGLE}.proj_out",),
    "single_blocks.{}.modulation.lin": (f"{_SINGLE}.norm.linear",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
"""Of FLUX.1's original checkpoints. Their final_layer.adaLN_modulation has shift and scale the other way round than
norm_out.linear here, so it is not among these."""


def sites(denoiser: nn.Module, preset: str) -> tuple[str, ...]:
    """Names of the linear layers of a denoiser that a preset adapts."""
    layers = (name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear))
    blocks = ("transformer_blocks.", "single_transformer_blocks.")
    return tuple(name for name in layers if name.startswith(blocks) and name.endswith(_SITES[preset]))


class Flux(T5Text, ClipText, FlowMatching, ShiftedLatents):
    """Parts: vae, transformer, text_encoder (CLIP ViT-L), text_encoder_2 (T5-XXL).

    Conditioning: `states` [B, L, D] of T5, without a mask and always of one length, and `pooled` [B, D1], what CLIP
    says of the whole prompt. Pipelines shift the times of samples by the size of the picture; training does not, unless
    `train.shift=resolution` asks for it.
    """

    family = FAMILIES["flux"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKL",
        "transformer": "diffusers.FluxTransformer2DModel",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.T5EncoderModel",
    }
    t5_parts = ("text_encoder_2", "tokenizer_2")
    t5_most = 512
    layout = (*classes, "tokenizer", "tokenizer_2", "scheduler")
    pipelines: ClassVar = {
        "text": "FluxPipeline",
        "image": "FluxImg2ImgPipeline",
        "inpaint": "FluxInpaintPipeline",
    }
    extras: ClassVar = {"image_encoder": None, "feature_extractor": None}
    samplers: ClassVar = {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    }
    native = _NATIVE
    bakes_alpha = True
    kohya_prefixes: ClassVar = {"text_encoder": "lora_te1"}
    known: ClassVar[Known] = {
        "transformer": {
            "_class_name": ("FluxTransformer2DModel",),
            "patch_size": (1,),
            "in_channels": (WHOLE,),
            "out_channels": (WHOLE, None),
            "guidance_embeds": (True,),
        },
        "vae": KNOWN_VAE,
        "text_encoder": clip.KNOWN_ENCODER,
        "text_encoder_2": t5.KNOWN_ENCODER,
        "scheduler": KNOWN_SCHEDULES,
    }

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        denoiser, vae = settings["transformer"], settings["vae"]
        channels = _PATCH * vae.get("latent_channels", 4)
        for does, field in (("reads", "in_channels"), ("predicts", "out_channels")):
            count = denoiser.get(field) or denoiser.get("in_channels", 64)
            if count != channels:
                yield (
                    "transformer",
                    f"{does} {count} channels ({field}), not {channels}, {_PATCH} times latent_channels",
                )
        for field, default, part, theirs in (
            ("joint_attention_dim", 4096, "text_encoder_2", "d_model"),
            ("pooled_projection_dim", 768, "text_encoder", "hidden_size"),
        ):
            read, width = denoiser.get(field, default), settings[part].get(theirs)
            if width is not None and read != width:
                yield "transformer", f"reads text of width {read} ({field}), where that of {part} is {width}"
        if "shift_factor" not in vae:
            yield "vae", "says no shift_factor"

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        return sites(self.outline(part), preset) if part == self.family.denoiser else clip.sites(self.outline(part))

    def saved_site(self, part: str, site: str) -> str:
        return site if part == self.family.denoiser else clip.saved_name(site)

    # -- text -------------------------------------------------------------------------------------------------------

    def cuts(self, text: str) -> tuple[Cut, ...]:
        return (*super().cuts(text), *self.t5_cuts(text))

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        return {"ids": self.token_ids("text_encoder", prompts), "ids_2": self.t5_ids(prompts)}

    def encode(self, tokens: Conditioning) -> Conditioning:
        return {
            "states": self.part("text_encoder_2")(tokens["ids_2"])[0],
            "pooled": self.part("text_encoder")(tokens["ids"]).pooler_output,
        }

    # -- latents ----------------------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        tokens = nn.functional.pixel_unshuffle(noisy, 2)
        height, width = tokens.shape[-2:]
        states, device = conditioning["states"].to(self.dtype), noisy.device
        rows, columns = (torch.arange(length, device=device) for length in (height, width))
        places = torch.cartesian_prod(torch.zeros_like(rows[:1]), rows, columns)
        velocity: Tensor = self.part("transformer")(
            hidden_states=tokens.flatten(2).transpose(1, 2).to(self.dtype),
            timestep=times,
            guidance=conditioning[GUIDANCE],
            pooled_projections=conditioning["pooled"].to(self.dtype),
            encoder_hidden_states=states,
            img_ids=places,  # of one row: all have one size
            txt_ids=places.new_zeros(states.shape[1], 3),
            return_dict=False,
        )[0]
        return nn.functional.pixel_shuffle(velocity.transpose(1, 2).unflatten(2, (height, width)), 2)

    def decode(self, pipe: Any, latents: Any, batch: Batch) -> NDArray[np.floating[Any]]:
        tokens = latents.transpose(1, 2).unflatten(2, (batch.height // 16, batch.width // 16))
        return super().decode(pipe, nn.functional.pixel_shuffle(tokens, 2), batch)

    # -- sampling ---------------------------------------------------------------------------------------------------

    def guided(self, guidance: float) -> bool:
        return False  # it reads the number, in one pass

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        if task != "text" and sampler == "unipc":
            raise ConfigError("sampler=unipc: cannot start from an image; give euler, or null")
        return super().pipeline(sampler, task)

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        arguments = super().call(pipe, batch)
        if isinstance(batch.text, tuple):
            arguments["max_sequence_length"] = self.t5_tokens
        return arguments | self.start(batch)

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        assert not isinstance(batch.text, tuple)
        return {
            "prompt_embeds": batch.text["states"].to(self.dtype),
            "pooled_prompt_embeds": batch.text["pooled"].to(self.dtype),
        }

    # -- files ------------------------------------------------------------------------------------------------------

    @property
    def formats(self) -> tuple[str, ...]:
        """diffusers reads kohya's names at the published width alone, which it has written down."""
        width = self.layers("transformer")["x_embedder"][0]
        return tuple(name for name in super().formats if name != "kohya" or width == _PUBLISHED_WIDTH)

    def export(self, file: LoraFile, format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        if format != "kohya":
            return super().export(file, format)
        tensors, metadata = native_layout(file, "transformer", self.native_layers(), self.layers("transformer"))
        of_text = {name: pair for name, pair in file.weights.items() if name.startswith("text_encoder.")}
        more, _ = kohya_layout(replace(file, weights=of_text), self.kohya_prefixes, self.saved_site)
        return tensors | more, metadata


def _random() -> dict[str, Any]:
    from dbexp.models import random_flux

    return {"family": "flux", "version": random_flux.VERSION}


def _build(folder: Path) -> None:
    from dbexp.models import random_flux

    random_flux.build_random(folder)


_SOURCE = Source(random=_random, build=_build, check=check_pipeline(Flux))


def load(cfg: ModelConfig, store: Store) -> Flux:
    """See `open_checkpoint`."""
    return open_checkpoint(Flux, _SOURCE, cfg, store)
