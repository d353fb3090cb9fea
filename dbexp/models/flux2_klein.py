"""FLUX.2 klein (Black Forest Labs, 2026): a VAE, a transformer that learnt by flow matching, Qwen3 that reads the text.

LoRAs are trained on a base checkpoint; they also work on the distilled one of its size, which draws in 4 steps.

Shapes: B rows; h x w tokens of the picture, 16 x 16 pixels and 128 channels each (2 x 2 latents of 32); L tokens
of text, each as wide as three states of the encoder.
"""

from __future__ import annotations

import re
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
from dbexp.models import VAE, Batch, Conditioning, LoraFile
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.flow import KNOWN_SCHEDULES, FlowMatching
from dbexp.models.known import POSITIVE, WHOLE, Known, Settings
from dbexp.models.lora_file import native_layout
from dbexp.models.native_names import NativeNames
from dbexp.models.qwen import KNOWN_ENCODER, QwenText

_STATES = (9, 18, 27)
"""Layers of the encoder whose states the denoiser reads: those of its pipeline. A training script of diffusers takes
others, which were meant for FLUX.2 dev."""
_ATTENTION = (
    r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)",
    r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)",
)
_SITES = {
    "attention": _ATTENTION,
    "attention+mlp": (*_ATTENTION, r"transformer_blocks\.\d+\.ff\.(linear_in|linear_out)"),
    "linear": (r"(single_)?transformer_blocks\..*",),
}
_BLOCK, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
NATIVE: NativeNames = {
    "double_blocks.{}.img_attn.qkv": tuple(f"{_BLOCK}.attn.{name}" for name in ("to_q", "to_k", "to_v")),
    "double_blocks.{}.img_attn.proj": (f"{_BLOCK}.attn.to_out.0",),
    "double_blocks.{}.img_mlp.0": (f"{_BLOCK}.ff.linear_in",),
    "double_blocks.{}.img_mlp.2": (f"{_BLOCK}.ff.linear_out",),
    "double_blocks.{}.txt_attn.qkv": tuple(f"{_BLOCK}.attn.add_{name}_proj" for name in "qkv"),
    "double_blocks.{}.txt_attn.proj": (f"{_BLOCK}.attn.to_add_out",),
    "double_blocks.{}.txt_mlp.0": (f"{_BLOCK}.ff_context.linear_in",),
    "double_blocks.{}.txt_mlp.2": (f"{_BLOCK}.ff_context.linear_out",),
    "single_blocks.{}.linear1": (f"{_SINGLE}.attn.to_qkv_mlp_proj",),
    "single_blocks.{}.linear2": (f"{_SINGLE}.attn.to_out",),
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_guidance_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_guidance_embed.timestep_embedder.linear_2",),
    "guidance_in.in_layer": ("time_guidance_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_guidance_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "single_stream_modulation.lin": ("single_stream_modulation.linear",),
    "double_stream_modulation_img.lin": ("double_stream_modulation_img.linear",),
    "double_stream_modulation_txt.lin": ("double_stream_modulation_txt.linear",),
}
"""Of FLUX.2's original checkpoints. Their final_layer.adaLN_modulation has shift and scale the other way round than
norm_out.linear here, so it is not among these."""


def sites(denoiser: nn.Module, preset: str) -> tuple[str, ...]:
    """Names of the linear layers of a denoiser that a preset adapts."""
    pattern = re.compile("|".join(_SITES[preset]))
    layers = (name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name in layers if pattern.fullmatch(name))


class Flux2Klein(QwenText, FlowMatching, Checkpoint):
    """Parts: vae, transformer, text_encoder. Conditioning: `states` [B, L, 3 D], D the width of the encoder.

    Pipelines shift the times of samples by a rule that depends on the number of steps, which training has none of;
    `train.shift=resolution` follows the rule in the scheduler's settings, as other trainers do.
    """

    family = FAMILIES["flux2_klein"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKLFlux2",
        "transformer": "diffusers.Flux2Transformer2DModel",
        "text_encoder": "transformers.Qwen3ForCausalLM",
    }
    layout = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler")
    pipelines: ClassVar = {"text": "Flux2KleinPipeline", "inpaint": "Flux2KleinInpaintPipeline"}
    samplers: ClassVar = {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    }
    native = NATIVE
    bakes_alpha = True
    output = "latent"
    thinks = False
    known: ClassVar[Known] = {
        "transformer": {
            "_class_name": ("Flux2Transformer2DModel",),
            "patch_size": (1,),
            "out_channels": (None, 128),
            "in_channels": (WHOLE,),
            "guidance_embeds": (False,),
        },
        "vae": {
            "_class_name": ("AutoencoderKLFlux2",),
            "latent_channels": (WHOLE,),
            "patch_size": ([2, 2],),
            "batch_norm_eps": (POSITIVE,),
        },
        "text_encoder": KNOWN_ENCODER,
        "scheduler": KNOWN_SCHEDULES,
    }
    vae_defaults: ClassVar = {}

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        denoiser, encoder = settings["transformer"], settings["text_encoder"]
        channels = 4 * settings["vae"].get("latent_channels", 32)
        if denoiser.get("in_channels", 128) != channels:
            yield (
                "transformer",
                f"reads {denoiser['in_channels']} channels (in_channels), not {channels}, 4 times latent_channels",
            )
        width, text = denoiser.get("joint_attention_dim"), len(_STATES) * encoder.get("hidden_size", 0)
        if width is not None and text and width != text:
            yield "transformer", f"reads text of width {width} (joint_attention_dim), where the encoder's is {text}"
        if encoder.get("num_hidden_layers", _STATES[-1]) < _STATES[-1]:
            yield "text_encoder", f"has {encoder['num_hidden_layers']} layers (num_hidden_layers) of {_STATES[-1]}"

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        return sites(self.outline(part), preset)

    # -- text -------------------------------------------------------------------------------------------------------

    def encode(self, tokens: Conditioning) -> Conditioning:
        encoder: Any = self.part("text_encoder")
        # its body alone: the head would predict the next word of every token
        states = encoder.model(tokens["ids"], tokens["mask"], output_hidden_states=True, use_cache=False).hidden_states
        # of all L tokens: the denoiser reads the padding too
        return {"states": torch.cat([states[layer] for layer in _STATES], dim=-1)}

    # -- latents ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae: Any = self.part(VAE)
        scale = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt().view(-1, 1, 1)
        mean = ((self._patches(pixels) - vae.bn.running_mean.view(-1, 1, 1)) / scale).contiguous()
        return mean, torch.zeros_like(mean)  # the denoiser knows no others than the posterior's mode

    def _patches(self, pixels: Tensor) -> Tensor:
        """Latents [B, 128, h, w] of pixels, as yet without normalisation: 2 x 2 neighbours become one token."""
        vae: Any = self.part(VAE)
        latents = vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist.mode()
        patches: Tensor = nn.functional.pixel_unshuffle(latents.float(), 2)
        return patches

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy.shape[-2:]
        states = conditioning["states"].to(self.dtype)
        tokens = self.part("transformer")(
            hidden_states=noisy.flatten(2).transpose(1, 2).to(self.dtype),
            timestep=times,
            encoder_hidden_states=states,
            img_ids=_places((1, height, width, 1), noisy.device),
            txt_ids=_places((1, 1, 1, states.shape[1]), noisy.device),
            return_dict=False,
        )[0]
        velocity: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
        return velocity

    # -- sampling ---------------------------------------------------------------------------------------------------

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
        if isinstance(batch.text, tuple):
            arguments["max_sequence_length"] = self.text_tokens
        if batch.image is not None:
            # as latents: the pipeline would encode in its own precision, and draw no more than a megapixel
            pixels = torch.from_numpy(np.array(batch.image)).permute(2, 0, 1)[None] / 255
            arguments["image"] = self._patches(2 * pixels - 1).to(self.dtype)
        return arguments

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        assert not isinstance(batch.text, tuple)
        arguments = {"prompt_embeds": batch.text["states"].to(self.dtype)}
        if batch.negative is not None:
            arguments["negative_prompt_embeds"] = batch.negative["states"].to(self.dtype)
        return arguments

    # -- files ------------------------------------------------------------------------------------------------------

    def export(self, file: LoraFile, format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        if format != "kohya":
            return super().export(file, format)
        return native_layout(file, "transformer", self.native_layers(), self.layers("transformer"))


def _places(extent: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """Places of tokens on the four axes that rotary embeddings know (picture, row, column, word), int64 [tokens, 4]."""
    axes = [torch.arange(length, device=device) for length in extent]
    return torch.cartesian_prod(*axes)


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
