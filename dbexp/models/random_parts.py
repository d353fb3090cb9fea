"""Parts that several families have alike, small and with random weights."""

from __future__ import annotations

from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTokenizer


def small_vae(scaling_factor: float, shift_factor: float) -> AutoencoderKL:
    """A VAE of the true geometry: 16 channels, 8 x 8 pixels a latent.

    Args:
        scaling_factor, shift_factor: of its latents.
    """
    stages = 4
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=(8, 8, 8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=16,
        sample_size=64,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def clip_config(width: int, tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Of one of CLIP's text encoders, that reads what a tokenizer writes.

    Args:
        width: of its states, and of what it says of a whole text.
    """
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
