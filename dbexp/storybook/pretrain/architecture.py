"""The untrained parts of the pipeline: the genuine Stable Diffusion classes, very small.

Pictures are 64 x 64, latents 16 x 16 x 16. Sizes follow what a prototype taught: four latent channels smear faces, and
attention at every resolution lets the ordinary LoRA recipe (q, k, v, out) learn a subject. They are as small as that
allows, because the model is pre-trained on CPUs.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dbexp.storybook.world.world import PICTURE_SIZE

VAE_WIDTHS = (16, 32, 64)
UNET_WIDTHS = (48, 96, 160)
LATENT_CHANNELS = 16
LATENT_SIZE = PICTURE_SIZE // 4
TEXT_WIDTH = 128
TEXT_LENGTH = 24
"""Tokens of a prompt, start and end included."""


def build_vae() -> AutoencoderKL:
    """A convolutional autoencoder, f = 4: RGB [n, 3, 64, 64] in [-1, 1] to latents [n, 16, 16, 16]."""
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=VAE_WIDTHS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=PICTURE_SIZE,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        # Start with blocks that pass their input on: it learns the first 15 dB in half the steps.
        for block in vae.modules():
            if isinstance(block, ResnetBlock2D):
                block.conv2.weight.zero_()
                block.conv2.bias.zero_()
    return vae


def build_unet() -> UNet2DConditionModel:
    """About 7 M parameters; attention at 16 x 16, 8 x 8 and 4 x 4 with two, four and four heads."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=UNET_WIDTHS,
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D"] * 3,
        up_block_types=["CrossAttnUpBlock2D"] * 3,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4, 4),  # diffusers reads this as the numbers of heads
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Three layers, width 128; hidden states [n, 24, 128]."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH,
            hidden_act="quick_gelu",
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction (Salimans & Ho 2022, arXiv 2202.00512, section 4)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def use_plain_attention(unet: UNet2DConditionModel) -> None:
    """Matrix products instead of fused attention, whose backward pass is several times slower on a CPU."""
    unet.set_attn_processor(AttnProcessor())
