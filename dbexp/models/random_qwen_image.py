"""A Qwen-Image pipeline of random weights and three hundred thousand parameters, written as a normal pipeline folder.

The geometry is the true one: 8 x 8 pixels a latent, 2 x 2 latents a token, 34 tokens before a prompt.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from dbexp.models import random_qwen
from dbexp.models.qwen_frame import BEFORE, DROPPED

VERSION = 1
MARKS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
"""What stands for pictures in the text of Qwen's models that see."""
_MAX_TOKENS, _WIDTH = DROPPED + 96, 16


def build_random(folder: Path, seed: int = 0) -> Path:
    """Write a pipeline folder.

    Args:
        folder: where; made if missing.
        seed: of the weights.

    Returns:
        `folder`.
    """
    tokenizer = random_qwen.build_tokenizer(_MAX_TOKENS, words=words_of(BEFORE), marks=MARKS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = QwenImagePipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                use_dynamic_shifting=True,
                base_shift=0.5,
                max_shift=0.9,
                base_image_seq_len=256,
                max_image_seq_len=8192,
                shift_terminal=0.02,
            ),
            vae=small_vae(),
            text_encoder=_text_encoder(tokenizer),
            tokenizer=tokenizer,
            transformer=_transformer(),
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def words_of(text: str) -> list[str]:
    """The words of a text, those of its marks among them, each once."""
    return list(dict.fromkeys(re.findall("[A-Za-z]+", text)))


def small_vae() -> AutoencoderKLQwenImage:
    """A VAE of films, 8 x 8 pixels a latent."""
    return AutoencoderKLQwenImage(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def _text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    ids: dict[str, Any] = {
        "vision_start_token_id": tokenizer.convert_tokens_to_ids(MARKS[0]),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids(MARKS[1]),
        "image_token_id": tokenizer.convert_tokens_to_ids(MARKS[2]),
        "video_token_id": tokenizer.convert_tokens_to_ids(MARKS[3]),
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2 * _MAX_TOKENS,
        "initializer_range": 0.2,  # ten times the usual, or prompts would hardly differ in so small a model
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sight = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": _WIDTH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=sight, **ids))


def _transformer() -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
