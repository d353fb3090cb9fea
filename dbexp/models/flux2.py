"""FLUX.2 dev (Black Forest Labs, 2025): a VAE, a transformer that learnt by flow matching and was then taught to read
guidance as a number, and Mistral Small 3, which reads the text; and what FLUX.2 klein has like it.

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
from numpy.typing import NDArray
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.store import Store
from dbexp.models import GUIDANCE, VAE, Batch, Conditioning, LoraFile, mistral
from dbexp.models.chat import ChatText
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.flow import KNOWN_SCHEDULES, FlowMatching
from dbexp.models.known import POSITIVE, WHOLE, Known, Settings
from dbexp.models.lora_file import native_layout
from dbexp.models.mistral import MistralText
from dbexp.models.native_names import NativeNames

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


KNOWN_DENOISER: dict[str, tuple[Any, ...]] = {
    "_class_name": ("Flux2Transformer2DModel",),
    "patch_size": (1,),
    "out_channels": (None, 128),
    "in_channels": (WHOLE,),
}
"""What the file of a denoiser may say, and whether it reads guidance; and that of"""
KNOWN_VAE: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKLFlux2",),
    "latent_channels": (WHOLE,),
    "patch_size": ([2, 2],),
    "batch_norm_eps": (POSITIVE,),
}
"""a VAE."""


class Flux2Model(ChatText, FlowMatching, Checkpoint):
    """What dev and klein have alike. Parts: vae, transformer, text_encoder. Conditioning: `states` [B, L, 3 D], D the
    width of the encoder.

    Pipelines shift the times of samples by a rule that depends on the number of steps, which training has none of;
    `train.shift=resolution` follows the rule in the scheduler's settings, as other trainers do.
    """

    states: ClassVar[tuple[int, int, int]]
    """Layers of the encoder whose states the denoiser reads."""
    layout = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler")
    samplers: ClassVar = {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    }
    native = NATIVE
    bakes_alpha = True
    output = "latent"
    vae_defaults: ClassVar = {}

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        denoiser, text_encoder = settings["transformer"], settings["text_encoder"]
        of_text = text_encoder.get("text_config")  # of one that could also see
        encoder, inside = (of_text, "text_config.") if of_text else (text_encoder, "")
        channels = 4 * settings["vae"].get("latent_channels", 32)
        if denoiser.get("in_channels", 128) != channels:
            yield (
                "transformer",
                f"reads {denoiser['in_channels']} channels (in_channels), not {channels}, 4 times latent_channels",
            )
        width, text = denoiser.get("joint_attention_dim"), len(cls.states) * encoder.get("hidden_size", 0)
        if width is not None and text and width != text:
            yield "transformer", f"reads text of width {width} (joint_attention_dim), where the encoder's is {text}"
        deepest = cls.states[-1]
        if (layers := encoder.get("num_hidden_layers", deepest)) < deepest:
            yield "text_encoder", f"has {layers} layers ({inside}num_hidden_layers) of {deepest}"

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        return sites(self.outline(part), preset)

    def encode(self, tokens: Conditioning) -> Conditioning:
        encoder: Any = self.part("text_encoder")
        # its body alone: the head would predict the next word of every token
        read = encoder.model(
            input_ids=tokens["ids"], attention_mask=tokens["mask"], output_hidden_states=True, use_cache=False
        )
        # of all L tokens: the denoiser reads the padding too
        return {"states": torch.cat([read.hidden_states[layer] for layer in self.states], dim=-1)}

    # -- latents ----------------------------------------------------------------------------------------------------

    @property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation [128, 1, 1] of the VAE's patches."""
        vae: Any = self.part(VAE)
        deviation = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean.view(-1, 1, 1), deviation.view(-1, 1, 1)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        center, scale = self._statistics
        mean = ((self._patches(pixels) - center) / scale).contiguous()
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
            guidance=conditioning[GUIDANCE] if self.family.embeds_guidance else None,
            encoder_hidden_states=states,
            img_ids=_places((1, height, width, 1), noisy.device),
            txt_ids=_places((1, 1, 1, states.shape[1]), noisy.device),
            return_dict=False,
        )[0]
        velocity: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
        return velocity

    # -- sampling ---------------------------------------------------------------------------------------------------

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        arguments = super().call(pipe, batch)
        if isinstance(batch.text, tuple):
            arguments["max_sequence_length"] = self.text_tokens
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


class Flux2(MistralText, Flux2Model):
    """FLUX.2 dev. Its pipeline takes pictures to look at, not to start from."""

    family = FAMILIES["flux2"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKLFlux2",
        "transformer": "diffusers.Flux2Transformer2DModel",
        "text_encoder": "transformers.Mistral3ForConditionalGeneration",
    }
    pipelines: ClassVar = {"text": "Flux2Pipeline"}
    states = (10, 20, 30)
    known: ClassVar[Known] = {
        "transformer": {**KNOWN_DENOISER, "guidance_embeds": (True,)},
        "vae": KNOWN_VAE,
        "text_encoder": mistral.KNOWN_ENCODER,
        "scheduler": KNOWN_SCHEDULES,
    }

    def guided(self, guidance: float) -> bool:
        return False  # it reads the number, in one pass

    def decode(self, pipe: Any, latents: Any, batch: Batch) -> NDArray[np.floating[Any]]:
        mean, deviation = self._statistics
        patches = latents.float().transpose(1, 2).unflatten(2, (batch.height // 16, batch.width // 16))
        return super().decode(pipe, nn.functional.pixel_shuffle(patches * deviation + mean, 2), batch)


def _places(extent: tuple[int, int, int, int], device: torch.device) -> Tensor:
    """Places of tokens on the four axes that rotary embeddings know (picture, row, column, word), int64 [tokens, 4]."""
    axes = [torch.arange(length, device=device) for length in extent]
    return torch.cartesian_prod(*axes)


def _random() -> dict[str, Any]:
    from dbexp.models import random_flux2

    return {"family": "flux2", "version": random_flux2.VERSION}


def _build(folder: Path) -> None:
    from dbexp.models import random_flux2

    random_flux2.build_random(folder)


_SOURCE = Source(random=_random, build=_build, check=check_pipeline(Flux2))


def load(cfg: ModelConfig, store: Store) -> Flux2:
    """See `open_checkpoint`."""
    return open_checkpoint(Flux2, _SOURCE, cfg, store)
