"""Random-weight Stable Diffusion pipelines of any size, tokenizer included, written as a normal pipeline folder.

They go through exactly the code that trained checkpoints go through. Tests use the tiny one; benchmarks, the one of
Stable Diffusion 1.5's true size; `model=random`, one that a laptop samples in seconds. Their pictures mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

VERSION = 1


@dataclass(frozen=True)
class Size:
    """Architecture of a pipeline, in the terms of its configuration files."""

    vae_channels: tuple[int, ...]
    unet_channels: tuple[int, ...]
    attention: tuple[bool, ...]
    """Which resolutions of the UNet, from fine to coarse, attend to the text."""
    layers_per_block: int
    heads: int
    text_width: int
    text_layers: int
    text_heads: int
    max_tokens: int
    resolution: int
    """Pixels a side."""
    norm_groups: int = 32
    vocabulary: int | None = None
    """Rows of the token embedding; None: as many as the tokenizer knows."""
    prediction_type: str = "epsilon"
    linear_projection: bool = False
    """Stable Diffusion 2 projects in and out of its transformer blocks by linear layers, version 1 by convolutions."""

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON-like dict."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]  # it is one by construction


TINY = Size(
    (8, 16), (16, 32), (True, True), 1, 2, text_width=16, text_layers=2, text_heads=2, max_tokens=32, resolution=32,
    norm_groups=4,
)  # fmt: skip
TINY_V = Size(
    (8, 16), (16, 32), (True, True), 1, 2, text_width=16, text_layers=2, text_heads=2, max_tokens=32, resolution=32,
    norm_groups=4, prediction_type="v_prediction", linear_projection=True,
)  # fmt: skip
SMALL = Size(
    (16, 32, 32), (32, 64), (True, True), 1, 4, text_width=64, text_layers=2, text_heads=4, max_tokens=77,
    resolution=64, norm_groups=8,
)  # fmt: skip
SD15 = Size(
    (128, 256, 512, 512), (320, 640, 1280, 1280), (True, True, True, False), 2, 8, text_width=768, text_layers=12,
    text_heads=12, max_tokens=77, resolution=512, vocabulary=49408,
)  # fmt: skip


def build(folder: Path, size: Size = TINY, seed: int = 0) -> Path:
    """Write a pipeline folder.

    Args:
        folder: where; made if missing.
        size: the architecture.
        seed: of the weights. The same seed gives the same weights whatever was drawn before.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(folder / "tokenizer", WORDS, size.max_tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionPipeline(
            vae=_vae(size),
            text_encoder=_text_encoder(size, tokenizer),
            tokenizer=tokenizer,
            unet=_unet(size),
            scheduler=_scheduler(size),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipe.save_pretrained(folder, safe_serialization=True)
    return folder


def _vae(size: Size) -> AutoencoderKL:
    levels = len(size.vae_channels)
    return AutoencoderKL(
        block_out_channels=size.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        layers_per_block=size.layers_per_block,
        norm_num_groups=size.norm_groups,
        sample_size=size.resolution,
        scaling_factor=0.18215,
    )


def _unet(size: Size) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in size.attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(size.attention))
    return UNet2DConditionModel(
        sample_size=size.resolution // 2 ** (len(size.vae_channels) - 1),
        block_out_channels=size.unet_channels,
        down_block_types=down,
        up_block_types=up,
        layers_per_block=size.layers_per_block,
        attention_head_dim=size.heads,  # diffusers' name for the number of heads
        cross_attention_dim=size.text_width,
        norm_num_groups=size.norm_groups,
        use_linear_projection=size.linear_projection,
    )


def _text_encoder(size: Size, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=size.vocabulary or len(tokenizer),
        hidden_size=size.text_width,
        intermediate_size=4 * size.text_width,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.text_heads,
        max_position_embeddings=size.max_tokens,
        projection_dim=size.text_width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def _scheduler(size: Size) -> PNDMScheduler:
    """Stable Diffusion's own sampler and noise schedule."""
    return PNDMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=size.prediction_type,
    )


# -- tokenizer --------------------------------------------------------------------------------------------------------

WORDS = (
    "a an the of on in with to and photo top sks dog cat backpack teapot bowl can candle clock sneaker toy boot vase "
    "glasses cartoon stuffed animal jungle snow beach cobblestone street pink fabric wooden floor city background "
    "mountain blue house purple rug forest wheat field tree autumn leaves eiffel tower floating water ocean milk green "
    "grass sunflowers around it mirror sidewalk crowded dirt road white red shiny wet cube shaped wearing hat santa "
    "rainbow scarf black monocle chef outfit firefighter police yellow shirt wizard"
).split()
"""One token each in the tokenizers that are made here."""


def byte_symbols() -> list[str]:
    """One printable character per byte, in the order of GPT-2's byte-level BPE (Radford et al., 2019, section 2.2)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(hidden))]


def build_tokenizer(folder: Path, words: Iterable[str], max_tokens: int) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the given words as one token each and spells everything else.

    Args:
        folder: receives vocab.json and merges.txt, the layout that every library version reads.
        words: lower-case words.
        max_tokens: length that prompts are padded and cut to.
    """
    symbols = byte_symbols()
    longer, merges = byte_pairs([*word[:-1], word[-1] + "</w>"] for word in words)
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *longer]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=max_tokens)


def byte_pairs(words: Iterable[list[str]]) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens of more than one symbol, and the merges that lead to them (Sennrich et al., arXiv 1508.07909), so that
    every word, given as its symbols, ends as one token."""
    tokens: list[str] = []
    merges: list[tuple[str, str]] = []
    for pieces in words:
        # as tokenising would go: first the merges known so far, in order, then new ones from the left
        for pair in merges:
            pieces = _merge(pieces, pair)
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            merges.append(pair)
            pieces = _merge(pieces, pair)
            tokens.append(pieces[0])
    return tokens, merges


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every adjacent occurrence of a pair."""
    joined: list[str] = []
    for piece in pieces:
        if joined and (joined[-1], piece) == pair:
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
