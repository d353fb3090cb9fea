"""A Stable Diffusion XL pipeline of random weights and half a million parameters, written as a normal pipeline folder.

As in the true one, the first level of the UNet has no attention and the second has more transformer layers, and the
first text encoder is narrower than the second.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from dbexp.models.random_parts import clip_config
from dbexp.models.random_weights import WORDS, build_tokenizer

VERSION = 1
_MAX_TOKENS = 77
_WIDTHS = (16, 24)
"""Of the text encoders."""
_TIME_WIDTH = 8
"""Of the embedding of each of the six numbers that tell the size of a picture."""


def build_random(folder: Path, seed: int = 0, *, in_channels: int = 4, prediction_type: str = "epsilon") -> Path:
    """Write a pipeline folder.

    Args:
        folder: where; made if missing.
        seed: of the weights.
        in_channels: of the UNet; 9 for an inpainting checkpoint.
        prediction_type: what it predicts, as diffusers calls it.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(folder / "tokenizer", WORDS, _MAX_TOKENS)
    tokenizer_2 = build_tokenizer(folder / "tokenizer_2", WORDS, _MAX_TOKENS)
    tokenizer_2.pad_token = "!"  # as in the true one
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionXLPipeline(
            vae=_vae(),
            text_encoder=CLIPTextModel(clip_config(_WIDTHS[0], tokenizer)),
            text_encoder_2=CLIPTextModelWithProjection(clip_config(_WIDTHS[1], tokenizer_2)),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=_unet(in_channels),
            scheduler=_scheduler(prediction_type),
            add_watermarker=False,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.13025,
        force_upcast=True,
    )


def _unet(in_channels: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),  # diffusers' name for the number of heads
        cross_attention_dim=sum(_WIDTHS),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=_TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * _TIME_WIDTH + _WIDTHS[1],
    )


def _scheduler(prediction_type: str) -> EulerDiscreteScheduler:
    """The sampler and the noise schedule of the published checkpoint."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction_type,
    )
