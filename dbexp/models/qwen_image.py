"""Qwen-Image (Qwen team, arXiv 2508.02324): a VAE of films, a transformer that learnt by flow matching, and
Qwen2.5-VL, which reads the text.

Shapes: B rows; h x w latents of 16 channels, 8 x 8 pixels each; L tokens of text, of which a row's mask tells those
that are not padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Batch, Conditioning, qwen_latents, start
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.find import Source, check_pipeline, open_checkpoint
from dbexp.models.flow import KNOWN_SCHEDULES, FlowMatching
from dbexp.models.known import Known, Settings
from dbexp.models.qwen_frame import DROPPED, FramedText
from dbexp.models.qwen_latents import QwenLatents, packed, unpacked

_NOTHING = " "
"""The pipelines' negative prompt where there is none."""
_ATTENTION = (".attn.to_q", ".attn.to_k", ".attn.to_v", ".attn.to_out.0")
_SITES = {
    "attention": _ATTENTION,
    "attention+mlp": (*_ATTENTION, ".img_mlp.net.0.proj", ".img_mlp.net.2"),
    "linear": ("",),
}


def sites(denoiser: nn.Module, preset: str) -> tuple[str, ...]:
    """Names of the linear layers of a denoiser that a preset adapts."""
    layers = (name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear))
    return tuple(name for name in layers if name.startswith("transformer_blocks.") and name.endswith(_SITES[preset]))


class QwenImage(FramedText, QwenLatents, FlowMatching, Checkpoint):
    """Parts: vae, transformer, text_encoder. Conditioning: `states` [B, L, D] and `mask` [B, L], bool.

    Guidance is classifier-free (`true_cfg_scale` of the pipelines), with its result brought back to the length that
    the prediction had without it.
    """

    family = FAMILIES["qwen_image"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKLQwenImage",
        "transformer": "diffusers.QwenImageTransformer2DModel",
        "text_encoder": "transformers.Qwen2_5_VLForConditionalGeneration",
    }
    layout = ("vae", "transformer", "text_encoder", "tokenizer", "scheduler")
    pipelines: ClassVar = {
        "text": "QwenImagePipeline",
        "image": "QwenImageImg2ImgPipeline",
        "inpaint": "QwenImageInpaintPipeline",
    }
    samplers: ClassVar = {
        "euler": ("FlowMatchEulerDiscreteScheduler", {}),
        "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    }
    kohya_prefixes: ClassVar = {"transformer": "lora_unet"}
    keeps_end = False
    output = "latent"
    bakes_alpha = True
    vae_defaults: ClassVar = {}
    known: ClassVar[Known] = {
        "transformer": {
            "_class_name": ("QwenImageTransformer2DModel",),
            "patch_size": (2,),
            "guidance_embeds": (False, None),
            "zero_cond_t": (False,),
            "use_additional_t_cond": (False,),
            "use_layer3d_rope": (False,),
        },
        "vae": qwen_latents.KNOWN_VAE,
        "text_encoder": {"model_type": ("qwen2_5_vl",)},
        "scheduler": KNOWN_SCHEDULES,
    }

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        yield from qwen_latents.disagreements(settings)
        read, encoder = settings["transformer"].get("joint_attention_dim", 3584), settings["text_encoder"]
        width = (encoder.get("text_config") or encoder).get("hidden_size")
        if width is not None and read != width:
            yield "transformer", f"reads text of width {read} (joint_attention_dim), where the encoder's is {width}"

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        return sites(self.outline(part), preset)

    # -- text -------------------------------------------------------------------------------------------------------

    def encode(self, tokens: Conditioning) -> Conditioning:
        encoder: Any = self.part("text_encoder")
        ids, mask = self.in_blocks(tokens)
        # its body alone: the head would predict the next word of every token
        read = encoder.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        kept = mask[:, DROPPED:].bool()
        return {"states": read.hidden_states[-1][:, DROPPED:] * kept[..., None], "mask": kept}

    def unconditional(self, negative: str) -> Conditioning:
        return self.encode(self.tokenize([negative or _NOTHING]))

    # -- prediction -------------------------------------------------------------------------------------------------

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy.shape[-2:]
        tokens = self.part("transformer")(
            hidden_states=packed(noisy).to(self.dtype),
            timestep=times,
            encoder_hidden_states=conditioning["states"].to(self.dtype),
            encoder_hidden_states_mask=conditioning["mask"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
            return_dict=False,
        )[0]
        return unpacked(tokens, height, width)

    # -- sampling ---------------------------------------------------------------------------------------------------

    def guidance(self, value: float) -> dict[str, Any]:
        return {"true_cfg_scale": value}

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        if task != "text" and sampler == "unipc":
            raise ConfigError("sampler=unipc: cannot start from an image; give euler, or null")
        return super().pipeline(sampler, task)

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        arguments = super().call(pipe, batch)
        arguments["max_sequence_length"] = self.text_tokens
        if isinstance(batch.text, tuple) and self.guided(batch.guidance):
            arguments["negative_prompt"] = [_NOTHING] * len(batch.text)
        if batch.image is not None:
            latents, generators = start.drawn_latents(self.encode_images, batch.image, batch.seeds)
            size = {"width": batch.width, "height": batch.height}
            arguments |= {"image": latents.to(self.dtype), "generator": generators, **size}
            if batch.mask is not None:  # which the denoiser is not shown; the pipeline would encode it nevertheless
                arguments["masked_image_latents"] = arguments["image"]
        return arguments

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        assert not isinstance(batch.text, tuple)
        arguments = _arguments("prompt", batch.text, self.dtype)
        if batch.negative is not None:
            arguments |= _arguments("negative_prompt", batch.negative, self.dtype)
        return arguments


def _arguments(name: str, conditioning: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
    states, mask = conditioning["states"].to(dtype), conditioning["mask"]
    return {f"{name}_embeds": states, f"{name}_embeds_mask": mask}


def _random() -> dict[str, Any]:
    from dbexp.models import random_qwen_image

    return {"family": "qwen_image", "version": random_qwen_image.VERSION}


def _build(folder: Path) -> None:
    from dbexp.models import random_qwen_image

    random_qwen_image.build_random(folder)


_SOURCE = Source(random=_random, build=_build, check=check_pipeline(QwenImage))


def load(cfg: ModelConfig, store: Store) -> QwenImage:
    """See `open_checkpoint`."""
    return open_checkpoint(QwenImage, _SOURCE, cfg, store)
