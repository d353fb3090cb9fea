"""Krea 2 (Krea, 2026): Qwen-Image's VAE of films, a transformer that learnt by flow matching, and Qwen3-VL, of which
the transformer reads the states of many layers.

LoRAs are trained on Raw; they also work on Turbo, which was distilled to draw in 8 steps without guidance.

Shapes: B rows; h x w latents of 16 channels, 8 x 8 pixels each; L tokens of text, of which a row's mask tells those
that are no padding; K layers of the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.store import Store
from dbexp.models import Batch, Conditioning, qwen_latents
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.flow import KNOWN_SCHEDULES, FlowMatching
from dbexp.models.known import Known, Settings
from dbexp.models.qwen_frame import DROPPED, FramedText, padded
from dbexp.models.qwen_latents import QwenLatents, packed, unpacked

_STATES = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
"""Layers of the encoder whose states the denoiser reads, where a checkpoint names no others."""
_BLOCKS = r"(transformer_blocks|text_fusion\.refiner_blocks)\.\d+"
_AROUND = r"img_in|final_layer\.linear|text_fusion\.projector|(txt_in|time_embed)\.linear_[12]|time_mod_proj"
# text_fusion.layerwise_blocks see each token of each row as a row, in which lanes would have none
_SITES = {
    "attention": rf"{_AROUND}|{_BLOCKS}\.(attn\.(to_q|to_k|to_v|to_gate|to_out\.0)|ff\.(up|down))",
    "linear": rf"{_AROUND}|{_BLOCKS}\..*",
}


def sites(denoiser: nn.Module, preset: str) -> tuple[str, ...]:
    """Names of the linear layers of a denoiser that a preset adapts."""
    pattern = re.compile(_SITES[preset])
    layers = (name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name in layers if pattern.fullmatch(name))


class Krea2(FramedText, QwenLatents, FlowMatching, Checkpoint):
    """Parts: vae, transformer, text_encoder. Conditioning: `states` [B, L, K, D] and `mask` [B, L], bool.

    The pipeline puts padding between a prompt and the end of its frame. All text has one place in the transformer's
    rotary embedding, and padding is masked, so the same is read where padding stands behind.
    """

    family = FAMILIES["krea2"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKLQwenImage",
        "transformer": "diffusers.Krea2Transformer2DModel",
        "text_encoder": "transformers.Qwen3VLModel",
    }
    layout = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler")
    pipelines: ClassVar = {"text": "Krea2Pipeline"}
    samplers: ClassVar = {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    }
    keeps_end = True
    output = "latent"
    bakes_alpha = True
    vae_defaults: ClassVar = {}
    known: ClassVar[Known] = {
        "transformer": {"_class_name": ("Krea2Transformer2DModel",)},
        "vae": qwen_latents.KNOWN_VAE,
        "text_encoder": {"model_type": ("qwen3_vl",)},
        "scheduler": KNOWN_SCHEDULES,
    }

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        yield from qwen_latents.disagreements(settings)
        denoiser, encoder = settings["transformer"], settings["text_encoder"].get("text_config") or {}
        read, width = denoiser.get("text_hidden_dim", 2560), encoder.get("hidden_size")
        if width is not None and read != width:
            yield "transformer", f"reads text of width {read} (text_hidden_dim), where the encoder's is {width}"
        layers = settings["model_index"].get("text_encoder_select_layers") or _STATES
        if (count := denoiser.get("num_text_layers", len(_STATES))) != len(layers):
            yield (
                "transformer",
                f"reads {count} layers of text (num_text_layers), where the pipeline names {len(layers)}",
            )
        if encoder.get("num_hidden_layers", max(layers)) < max(layers):
            yield "text_encoder", f"has {encoder['num_hidden_layers']} layers (num_hidden_layers) of {max(layers)}"

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        return sites(self.outline(part), preset)

    # -- text -------------------------------------------------------------------------------------------------------

    def encode(self, tokens: Conditioning) -> Conditioning:
        ids, mask = self.in_blocks(tokens)
        places = torch.arange(ids.shape[1], device=ids.device).expand(3, len(ids), -1)
        read = self.part("text_encoder")(
            input_ids=ids, attention_mask=mask, position_ids=places, output_hidden_states=True, use_cache=False
        )
        layers = self._settings("model_index.json").get("text_encoder_select_layers") or _STATES
        states = torch.stack([read.hidden_states[layer][:, DROPPED:] for layer in layers], dim=2)
        kept = mask[:, DROPPED:].bool()
        return {"states": states * kept[..., None, None], "mask": kept}

    # -- prediction -------------------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        (height, width), states = noisy.shape[-2:], conditioning["states"].to(self.dtype)
        tokens = self.part("transformer")(
            hidden_states=packed(noisy).to(self.dtype),
            encoder_hidden_states=states,
            timestep=times,
            position_ids=_places(states.shape[1], height // 2, width // 2, noisy.device),
            encoder_attention_mask=conditioning["mask"],
            return_dict=False,
        )[0]
        return unpacked(tokens, height, width)

    # -- sampling ---------------------------------------------------------------------------------------------------

    @property
    def distilled(self) -> bool:
        """Whether it was taught to draw in a few steps, without guidance and with a shift of its own."""
        return bool(self._settings("model_index.json").get("is_distilled", False))

    def guided(self, guidance: float) -> bool:
        return guidance > 1 and not self.distilled

    def guidance(self, value: float) -> dict[str, Any]:
        # of v_text + g (v_text - v_negative), where 0 is none
        return {"guidance_scale": 0.0 if self.distilled else max(value - 1, 0.0)}

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        pipe = super().pipeline(sampler, task)
        pipe.register_to_config(is_distilled=self.distilled)
        return pipe

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        return {**super().call(pipe, batch), "max_sequence_length": self.text_tokens}

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        assert not isinstance(batch.text, tuple)
        rows = {"prompt": batch.text} | ({} if batch.negative is None else {"negative_prompt": batch.negative})
        # the pipeline counts the places of both by the length of one
        longest = max(conditioning["mask"].shape[1] for conditioning in rows.values())
        arguments: dict[str, Any] = {}
        for name, conditioning in rows.items():
            text = padded(conditioning, longest)
            arguments |= {f"{name}_embeds": text["states"].to(self.dtype), f"{name}_embeds_mask": text["mask"]}
        return arguments


def _places(text: int, height: int, width: int, device: torch.device) -> Tensor:
    """Places of tokens on three axes (picture, row, column), fp32 [text + height * width, 3]: those of text are 0."""
    axes = (torch.zeros(1, device=device), torch.arange(height, device=device), torch.arange(width, device=device))
    squares = torch.cartesian_prod(*(axis.float() for axis in axes))
    return torch.cat([torch.zeros(text, 3, device=device), squares])


def _random() -> dict[str, Any]:
    from dbexp.models import random_krea2

    return {"family": "krea2", "version": random_krea2.VERSION}


def _build(folder: Path) -> None:
    from dbexp.models import random_krea2

    random_krea2.build_random(folder)


_SOURCE = Source(random=_random, build=_build, check=check_pipeline(Krea2))


def load(cfg: ModelConfig, store: Store) -> Krea2:
    """See `open_checkpoint`."""
    return open_checkpoint(Krea2, _SOURCE, cfg, store)
