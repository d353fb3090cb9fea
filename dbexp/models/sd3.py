"""Stable Diffusion 3.5 (Esser et al., arXiv 2403.03206): a transformer that learnt by flow matching, and three text
encoders, of which two are CLIP's and one is T5's.

Shapes: B rows; h x w latents of C channels, 8 x 8 pixels each; L1 tokens of CLIP and L2 of T5; D the width of T5's
states, D1 and D2 those of what the CLIPs say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Batch, Conditioning, Cut, clip, t5
from dbexp.models.clip import ClipText
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.flow import KNOWN_SCHEDULES, FlowMatching
from dbexp.models.known import WHOLE, Known, Settings
from dbexp.models.native_names import NativeNames
from dbexp.models.shifted_latents import KNOWN_VAE, ShiftedLatents
from dbexp.models.t5 import T5Text

_LATENT = 8
"""Pixels that a latent is wide and high."""
_POSITIONS = 96  # a side, where a checkpoint does not say
_ATTENTION = (
    *(".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0"),
    *(".attn.add_q_proj", ".attn.add_k_proj", ".attn.add_v_proj", ".attn.to_add_out"),
)
_SITES = {
    "attention": _ATTENTION,
    "attention+mlp": (*_ATTENTION, ".ff.net.0.proj", ".ff.net.2", ".ff_context.net.0.proj", ".ff_context.net.2"),
    "linear": ("",),
}
_BLOCK = "transformer_blocks.{}"
_NATIVE: NativeNames = {
    "joint_blocks.{}.x_block.attn.qkv": tuple(f"{_BLOCK}.attn.to_{name}" for name in "qkv"),
    "joint_blocks.{}.x_block.attn.proj": (f"{_BLOCK}.attn.to_out.0",),
    "joint_blocks.{}.x_block.attn2.qkv": tuple(f"{_BLOCK}.attn2.to_{name}" for name in "qkv"),
    "joint_blocks.{}.x_block.attn2.proj": (f"{_BLOCK}.attn2.to_out.0",),
    "joint_blocks.{}.x_block.mlp.fc1": (f"{_BLOCK}.ff.net.0.proj",),
    "joint_blocks.{}.x_block.mlp.fc2": (f"{_BLOCK}.ff.net.2",),
    "joint_blocks.{}.x_block.adaLN_modulation.1": (f"{_BLOCK}.norm1.linear",),
    "joint_blocks.{}.context_block.attn.qkv": tuple(f"{_BLOCK}.attn.add_{name}_proj" for name in "qkv"),
    "joint_blocks.{}.context_block.attn.proj": (f"{_BLOCK}.attn.to_add_out",),
    "joint_blocks.{}.context_block.mlp.fc1": (f"{_BLOCK}.ff_context.net.0.proj",),
    "joint_blocks.{}.context_block.mlp.fc2": (f"{_BLOCK}.ff_context.net.2",),
    "context_embedder": ("context_embedder",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
}
"""Of the original checkpoints. Their modulations of the text have, in the last block, shift and scale the other way
round, as has their final layer: these are not among them."""
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


def sites(denoiser: nn.Module, preset: str) -> tuple[str, ...]:
    """Names of the linear layers of a denoiser that a preset adapts."""
    layers = (name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name in layers if name.startswith("transformer_blocks.") and name.endswith(_SITES[preset]))


class StableDiffusion3(T5Text, ClipText, FlowMatching, ShiftedLatents):
    """Parts: vae, transformer, text_encoder (CLIP ViT-L), text_encoder_2 (OpenCLIP ViT-bigG), text_encoder_3 (T5-XXL).

    Conditioning: `states` [B, L1 + L2, D], those of both CLIPs side by side, filled up with zeros, with T5's behind
    them; `pooled` [B, D1 + D2], what both CLIPs say of the whole prompt. The last block reads text and writes none: its
    adapter of the text's queries never learns. It is there because LoRA files of other trainers have it.
    """

    family = FAMILIES["sd3"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKL",
        "transformer": "diffusers.SD3Transformer2DModel",
        "text_encoder": "transformers.CLIPTextModelWithProjection",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "text_encoder_3": "transformers.T5EncoderModel",
    }
    tokenizers: ClassVar = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
    t5_parts = ("text_encoder_3", "tokenizer_3")
    t5_most = 256
    layout = (*classes, "tokenizer", "tokenizer_2", "tokenizer_3", "scheduler")
    pipelines: ClassVar = {
        "text": "StableDiffusion3Pipeline",
        "image": "StableDiffusion3Img2ImgPipeline",
        "inpaint": "StableDiffusion3InpaintPipeline",
    }
    extras: ClassVar = {"image_encoder": None, "feature_extractor": None}
    samplers: ClassVar = {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "heun": ("FlowMatchHeunDiscreteScheduler", {}),
        "dpm++": ("DPMSolverMultistepScheduler", _FLOW),
        "unipc": ("UniPCMultistepScheduler", _FLOW),
    }
    native = _NATIVE
    bakes_alpha = True
    known: ClassVar[Known] = {
        "transformer": {
            "_class_name": ("SD3Transformer2DModel",),
            "patch_size": (2,),
            "in_channels": (WHOLE,),
            "out_channels": (WHOLE, None),
            "qk_norm": (None, "rms_norm"),
        },
        "vae": KNOWN_VAE,
        "text_encoder": clip.KNOWN_ENCODER,
        "text_encoder_2": clip.KNOWN_ENCODER,
        "text_encoder_3": t5.KNOWN_ENCODER,
        "scheduler": KNOWN_SCHEDULES,
    }

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        denoiser, vae = settings["transformer"], settings["vae"]
        channels = vae.get("latent_channels", 4)
        for does, field in (("reads", "in_channels"), ("predicts", "out_channels")):
            count = denoiser.get(field) or denoiser.get("in_channels", 16)
            if count != channels:
                yield (
                    "transformer",
                    f"{does} {count} channels ({field}), the VAE has latent_channels={channels}",
                )
        read, width = denoiser.get("joint_attention_dim", 4096), settings["text_encoder_3"].get("d_model")
        if width is not None and read != width:
            yield (
                "transformer",
                f"reads text of width {read} (joint_attention_dim), where that of text_encoder_3 is {width}",
            )
        clips = [settings[part].get("projection_dim") for part in cls.tokenizers]
        told = denoiser.get("pooled_projection_dim", 2048)
        if None not in clips and told != sum(filter(None, clips)):
            yield (
                "transformer",
                f"is told {told} numbers of a prompt (pooled_projection_dim), where the CLIP encoders say "
                f"{sum(filter(None, clips))}",
            )
        if "shift_factor" not in vae:
            yield "vae", "says no shift_factor"

    @property
    def largest_side(self) -> int:
        """Pixels that the denoiser has positions for."""
        settings = self._settings("transformer", "config.json")
        return int(settings.get("pos_embed_max_size", _POSITIONS)) * int(settings.get("patch_size", 2)) * _LATENT

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        return sites(self.outline(part), preset) if part == self.family.denoiser else clip.sites(self.outline(part))

    def saved_site(self, part: str, site: str) -> str:
        return site if part == self.family.denoiser else clip.saved_name(site)

    # -- text -------------------------------------------------------------------------------------------------------

    def cuts(self, text: str) -> tuple[Cut, ...]:
        return (*super().cuts(text), *self.t5_cuts(text))

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        return {
            "ids": self.token_ids("text_encoder", prompts),
            "ids_2": self.token_ids("text_encoder_2", prompts),
            "ids_3": self.t5_ids(prompts),
        }

    def encode(self, tokens: Conditioning) -> Conditioning:
        first = self.part("text_encoder")(tokens["ids"], output_hidden_states=True)
        second = self.part("text_encoder_2")(tokens["ids_2"], output_hidden_states=True)
        long = self.part("text_encoder_3")(tokens["ids_3"])[0]
        short = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        short = nn.functional.pad(short, (0, long.shape[-1] - short.shape[-1]))
        return {
            "states": torch.cat([short, long], dim=1),
            "pooled": torch.cat([first.text_embeds, second.text_embeds], dim=-1),
        }

    # -- latents ----------------------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        velocity: Tensor = self.part("transformer")(
            hidden_states=noisy.to(self.dtype),
            timestep=1000 * times,
            encoder_hidden_states=conditioning["states"].to(self.dtype),
            pooled_projections=conditioning["pooled"].to(self.dtype),
            return_dict=False,
        )[0]
        return velocity

    # -- sampling ---------------------------------------------------------------------------------------------------

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        if task != "text" and sampler in ("dpm++", "unipc"):
            raise ConfigError(f"sampler={sampler}: cannot start from an image; give euler, heun, or null")
        return super().pipeline(sampler, task)

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        arguments = super().call(pipe, batch)
        if isinstance(batch.text, tuple):
            arguments["max_sequence_length"] = self.t5_tokens
        return arguments | self.start(batch)

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        assert not isinstance(batch.text, tuple)
        arguments = {
            "prompt_embeds": batch.text["states"].to(self.dtype),
            "pooled_prompt_embeds": batch.text["pooled"].to(self.dtype),
        }
        if batch.negative is not None:
            arguments["negative_prompt_embeds"] = batch.negative["states"].to(self.dtype)
            arguments["negative_pooled_prompt_embeds"] = batch.negative["pooled"].to(self.dtype)
        return arguments


def _random() -> dict[str, Any]:
    from dbexp.models import random_sd3

    return {"family": "sd3", "version": random_sd3.VERSION}


def _build(folder: Path) -> None:
    from dbexp.models import random_sd3

    random_sd3.build_random(folder)


_SOURCE = Source(random=_random, build=_build, check=check_pipeline(StableDiffusion3))


def load(cfg: ModelConfig, store: Store) -> StableDiffusion3:
    """See `open_checkpoint`.

    Raises:
        ConfigError: or the denoiser has no positions for pictures of this resolution.
    """
    model = open_checkpoint(StableDiffusion3, _SOURCE, cfg, store)
    most = model.largest_side
    if cfg.resolution > most:
        raise ConfigError(
            f"model.resolution={cfg.resolution}: this checkpoint's denoiser has positions for at most {most} pixels "
            "a side"
        )
    return model
