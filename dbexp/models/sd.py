"""Stable Diffusion 1.x and 2.x (Rombach et al., arXiv 2112.10752): a VAE, a UNet, CLIP's text encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import VAE, Batch, Conditioning, clip, inpaint
from dbexp.models.checkpoint import Checkpoint
from dbexp.models.clip import ClipText
from dbexp.models.ddpm import KNOWN_SCHEDULES, DiscreteNoise, schedule_disagreements
from dbexp.models.files import settings as settings_of
from dbexp.models.find import Source, open_checkpoint
from dbexp.models.known import POSITIVE, WHOLE, Known, Settings
from dbexp.models.native_names import unet_names

_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    # latents have no bounds to clip to, and some checkpoints' settings forget to say so
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "dpm++": ("DPMSolverMultistepScheduler", {}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
_ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0")
_SITES: dict[str, Callable[[str], bool]] = {
    "attention": lambda name: name.endswith(_ATTENTION),
    # the sites of the cloneofsimo/lora trainer: attention and the gated input projection of the feed-forward layer
    "attention+geglu": lambda name: name.endswith((*_ATTENTION, ".ff.net.0.proj")),
    "linear": lambda name: ".transformer_blocks." in name,
}
_INPAINT_CHANNELS = 9  # of the noisy latents (4), the mask (1) and the masked picture's latents (4)


_KNOWN_UNET: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "in_channels": (WHOLE,),
    "out_channels": (WHOLE,),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "time_cond_proj_dim": (None,),
}
"""What else a UNet may read, which dbexp has nothing to tell: of pictures, classes, boxes, the guidance of a
distillation."""
_KNOWN_VAE: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKL",),
    "in_channels": (3,),
    "out_channels": (3,),
    "latent_channels": (WHOLE,),
    "scaling_factor": (POSITIVE,),
    "shift_factor": (None, 0, 0.0),
}


class StableDiffusion(ClipText, DiscreteNoise, Checkpoint):
    """Parts: vae, unet, text_encoder. Conditioning: `states` [B, L, D] of the text encoder."""

    family = FAMILIES["sd"]
    classes: ClassVar = {
        "vae": "diffusers.AutoencoderKL",
        "unet": "diffusers.UNet2DConditionModel",
        "text_encoder": "transformers.CLIPTextModel",
    }
    layout: ClassVar[tuple[str, ...]] = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")
    pipelines: ClassVar = {
        "text": "StableDiffusionPipeline",
        "image": "StableDiffusionImg2ImgPipeline",
        "inpaint": "StableDiffusionInpaintPipeline",
    }
    extras: ClassVar = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    samplers = _SAMPLERS
    kohya_prefixes: ClassVar = {"unet": "lora_unet", "text_encoder": "lora_te"}
    channels_last = True
    known: ClassVar[Known] = {
        "unet": {**_KNOWN_UNET, "addition_embed_type": (None,)},
        "vae": {**_KNOWN_VAE, "latents_mean": (None,), "latents_std": (None,)},
        "text_encoder": clip.KNOWN_ENCODER,
        "scheduler": KNOWN_SCHEDULES,
    }

    @classmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        yield from schedule_disagreements(settings)
        unet, vae = settings["unet"], settings["vae"]
        channels, read = vae.get("latent_channels", 4), unet.get("in_channels", 4)
        if read not in (channels, _INPAINT_CHANNELS) or (read == _INPAINT_CHANNELS and channels != 4):
            yield "unet", f"reads {read} channels (in_channels), the VAE has latent_channels={channels}"
        if unet.get("out_channels", 4) != channels:
            yield (
                "unet",
                f"predicts {unet.get('out_channels')} channels (out_channels), the VAE has latent_channels={channels}",
            )
        widths = [settings[part].get("hidden_size") for part in cls.family.encoders]
        width, text = unet.get("cross_attention_dim"), sum(filter(None, widths))
        if isinstance(width, int) and None not in widths and width != text:
            yield "unet", f"reads text of width {width} (cross_attention_dim), where that of the encoders is {text}"
        blocks = vae.get("block_out_channels")
        pixels = 2 ** (len(blocks) - 1) if isinstance(blocks, list) else 1
        if cls.family.size_multiple % pixels:
            yield "vae", f"makes latents of {pixels} pixels (block_out_channels); {cls.family.title} has those of 8"

    @property
    def vae_dtype(self) -> torch.dtype:
        return self.dtype  # these do not overflow, and stored latents are of this precision

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        if part != "unet":
            return clip.sites(self.outline(part))
        modules, is_site = self.outline(part).named_modules(), _SITES[preset]
        return tuple(name for name, module in modules if isinstance(module, nn.Linear) and is_site(name))

    def native_layers(self) -> Mapping[str, tuple[str, ...]]:
        layers_per_block = self._settings("unet", "config.json").get("layers_per_block", 2)
        return unet_names(self.layers("unet"), layers_per_block) if isinstance(layers_per_block, int) else {}

    def saved_site(self, part: str, site: str) -> str:
        return site if part == "unet" else clip.saved_name(site)

    # -- text -------------------------------------------------------------------------------------------------------

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        return {"ids": self.token_ids("text_encoder", prompts)}

    def encode(self, tokens: Conditioning) -> Conditioning:
        return {"states": self.part("text_encoder")(tokens["ids"])[0]}

    # -- latents ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae: Any = self.part(VAE)
        posterior = vae.encode(pixels.to(self.device, self.vae_dtype)).latent_dist
        scale = float(vae.config.scaling_factor)
        return posterior.mean.float().contiguous() * scale, posterior.std.float().contiguous() * scale

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        states = conditioning["states"].to(self.dtype)
        sample: Tensor = self.part("unet")(noisy.to(self.dtype), times, encoder_hidden_states=states).sample
        return sample

    # -- sampling ---------------------------------------------------------------------------------------------------

    @property
    def needs_mask(self) -> bool:
        return bool(self._settings("unet", "config.json").get("in_channels") == _INPAINT_CHANNELS)

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        pipe = super().pipeline(sampler, task)
        return super().pipeline(sampler, "image") if task == "inpaint" and inpaint.is_needed(pipe) else pipe

    def _after_step(self, pipe: Any, batch: Batch) -> inpaint.Keep | None:
        if batch.image is None or batch.mask is None or not inpaint.is_needed(pipe):
            return None
        return inpaint.keeping(pipe, batch.image, batch.mask, batch.seeds)

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        arguments = super().call(pipe, batch)
        if batch.mask is not None and inpaint.is_needed(
            pipe
        ):  # it draws from an image, and `_after_step` keeps the rest
            for name in ("mask_image", "height", "width"):
                del arguments[name]
        return arguments

    def embeddings(self, batch: Batch) -> dict[str, Any]:
        assert not isinstance(batch.text, tuple)
        negative = None if batch.negative is None else batch.negative["states"]
        return {"prompt_embeds": batch.text["states"], "negative_prompt_embeds": negative}


def _check(cfg: ModelConfig, folder: Path) -> None:
    """The denoiser of a pipeline folder must be this family's."""
    path = folder / "unet" / "config.json"
    settings = settings_of(path)
    if settings is None:
        raise ConfigError(f"model.path={cfg.path}: {path} is missing or damaged")
    kind = settings.get("_class_name")
    second_encoder = (folder / "text_encoder_2").exists()
    if kind != "UNet2DConditionModel" or second_encoder:
        raise ConfigError(
            f"model.path={cfg.path}: not a Stable Diffusion 1.x or 2.x checkpoint (denoiser {kind}"
            f"{', two text encoders' if second_encoder else ''}); model.family={cfg.family} covers only those"
            f"{', model.family=sdxl those of Stable Diffusion XL' if second_encoder else ''}"
        )


def _random() -> dict[str, Any]:
    from dbexp.models import random_weights

    return {"version": random_weights.VERSION, "size": random_weights.SMALL.to_json(), "seed": 0}


def _build(folder: Path) -> None:
    from dbexp.models import random_weights

    random_weights.build(folder, random_weights.SMALL, seed=0)


_SOURCE = Source(
    random=_random,
    build=_build,
    check=_check,
    suffixes=(".safetensors", ".bin", ".json", ".txt"),
    files=(),
)


def load(cfg: ModelConfig, store: Store) -> StableDiffusion:
    """See `open_checkpoint`."""
    return open_checkpoint(StableDiffusion, _SOURCE, cfg, store)
