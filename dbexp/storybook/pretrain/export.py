"""Write what was trained: an ordinary pipeline folder in fp16 safetensors with its model card, and a sample sheet."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPTextModel, CLIPTokenizer

from dbexp.storybook.pretrain.architecture import build_scheduler, build_text_encoder, build_unet
from dbexp.storybook.pretrain.corpus import NAME_COUNT, NAMES
from dbexp.storybook.pretrain.latent_pool import scaling_factor
from dbexp.storybook.pretrain.metric_nets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PerceptualDistance,
    build_clip,
    build_dino,
    save_clip,
    save_dino,
    save_lpips,
)
from dbexp.storybook.pretrain.tokenizer import RARE_TOKEN, WORD_END, build_tokenizer, save_tokenizer
from dbexp.storybook.pretrain.train_unet import load_vae
from dbexp.storybook.pretrain.train_vae import held_out_pictures, to_tensor
from dbexp.storybook.pretrain.training import averaged_weights
from dbexp.storybook.world.identity import CLASS_NOUNS
from dbexp.storybook.world.world import caption, contact_sheet, scenes_of_class

SHEET_STEPS = 25
SHEET_GUIDANCE = 4.0


def build_pipeline(out: Path, device: torch.device) -> StableDiffusionPipeline:
    """The pipeline of a pre-training folder, averaged weights, fp32.

    Raises:
        ConfigError: stage vae or unet has not been trained.
    """
    vae = load_vae(out, device)
    vae.register_to_config(scaling_factor=scaling_factor(vae, device))
    tokenizer = build_tokenizer()
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    unet.load_state_dict(averaged_weights(out / "unet", "unet"))
    text_encoder.load_state_dict(averaged_weights(out / "unet", "text_encoder"))
    name_the_rare_token(text_encoder, tokenizer)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


@torch.no_grad()
def name_the_rare_token(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Move the embedding of the prompts' rare token, which nothing trains, as far from the names' mean as names are.

    It keeps its direction. At half a name's length, where it starts, it hardly moves a hidden state: a LoRA then cannot
    tell "a purple sks dog" from "a purple dog", changes both alike, and paints over the colour. Doing it twice changes
    nothing more.
    """
    table = text_encoder.get_input_embeddings().weight
    names = table[tokenizer.convert_tokens_to_ids([name + WORD_END for name in NAMES])]
    rare = table[tokenizer.convert_tokens_to_ids(RARE_TOKEN + WORD_END)]
    mean = names.mean(0)
    rare.copy_(mean + F.normalize(rare - mean, dim=0) * (names - mean).norm(dim=1).mean())


def export_pipeline(out: Path, folder: Path) -> Path:
    """Save the pipeline as `from_pretrained` reads it, weights in fp16, with its model card; returns `folder`."""
    pipeline = build_pipeline(out, torch.device("cpu"))
    for part in (pipeline.vae, pipeline.unet, pipeline.text_encoder):
        part.half()
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    # transformers takes the precision that this file names where nobody asks for one, diffusers fp32: they must meet
    settings = folder / "text_encoder" / "config.json"
    settings.write_text(settings.read_text(encoding="utf-8").replace('"float16"', '"float32"'), encoding="utf-8")
    save_tokenizer(folder / "tokenizer")
    (folder / "README.md").write_text(model_card(out), encoding="utf-8")
    return folder


def export_metric_nets(out: Path, folder: Path) -> list[str]:
    """Save every trained metric network below `folder`, in the format of its library; returns their names."""
    dino, clip, lpips = build_dino(), build_clip(), PerceptualDistance()
    savers: dict[str, tuple[nn.Module, Callable[[], None]]] = {
        "dino": (dino, lambda: save_dino(dino, folder / "dino")),
        "clip": (clip, lambda: save_clip(clip, folder / "clip")),
        "lpips": (lpips, lambda: save_lpips(lpips, folder / "lpips")),
    }
    trained = [name for name in savers if (out / name / "checkpoint.pt").exists()]
    for name in trained:
        module, save = savers[name]
        module.load_state_dict(averaged_weights(out / name, name))
        save()
    return trained


@torch.no_grad()
def reconstruction_similarity(out: Path) -> float:
    """Mean cosine, in the space of the trained `dino`, of held-out subjects and their reconstructions by the VAE."""
    device = torch.device("cpu")
    vae, dino = load_vae(out, device), build_dino().eval()
    dino.load_state_dict(averaged_weights(out / "dino", "dino"))
    pictures = to_tensor(held_out_pictures()["subjects"], device)
    copies = vae.decode(vae.encode(pictures).latent_dist.mean).sample.clamp(-1, 1)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    first, second = (dino((side / 2 + 0.5 - mean) / std) for side in (pictures, copies))
    return F.cosine_similarity(first, second).mean().item()


def sample_sheet(pipeline: StableDiffusionPipeline, path: Path, per_class: int = 12, seed: int = 0) -> Path:
    """48 pictures of the base model over both prompt lists, 12 a class, in the order of `CLASS_NOUNS`."""
    pictures: list[Image.Image] = []
    for row, class_noun in enumerate(CLASS_NOUNS):
        scenes = scenes_of_class(class_noun)
        chosen = [scenes[i * len(scenes) // per_class] for i in range(per_class)]
        prompts = [caption(class_noun, scene) for scene in chosen]
        generators = [torch.Generator().manual_seed((seed * 10 + row) * 100 + i) for i in range(per_class)]
        output: Any = pipeline(
            prompts, num_inference_steps=SHEET_STEPS, guidance_scale=SHEET_GUIDANCE, generator=generators
        )
        pictures += output.images
    sheet = contact_sheet(pictures, per_class)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def last_figures(out: Path, stage: str) -> dict[str, Any]:
    """The last training and evaluation figures of a stage, merged; empty when it never ran."""
    log = out / stage / "log.jsonl"
    figures: dict[str, Any] = {}
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            figures.update(json.loads(line))
    return figures


def model_card(out: Path) -> str:
    """The README of the exported folder, with the figures that were logged."""
    rows = []
    for stage in ("vae", "unet", "dino", "clip", "lpips"):
        figures = last_figures(out, stage)
        if figures:
            held_out = {key.removeprefix("eval/"): value for key, value in figures.items() if key.startswith("eval/")}
            if stage == "vae" and (out / "dino" / "checkpoint.pt").exists():
                held_out["reconstruction_similarity"] = reconstruction_similarity(out)
            measured = ", ".join(f"{key} {value:.4g}" for key, value in held_out.items())
            rows.append(f"| {stage} | {figures['seen']:,} | {figures['seconds'] / 3600:.2f} h | {measured} |")
    return CARD.format(rows="\n".join(rows), names=NAME_COUNT, classes=", ".join(CLASS_NOUNS))


CARD = """# Storybook

The built-in model of dbexp: a very small Stable Diffusion (64 x 64 pixels) and small metric networks, pre-trained on a
world that a program draws. It exists so that the whole experiment runs on a laptop, offline, and its numbers mean
something; they are never comparable with those of models trained on photographs.

## Data
Drawn on the fly by `dbexp.storybook`: {classes}; the contexts, outfits and properties of DreamBooth's two prompt lists;
{names} invented names, each bound to a fixed character. No picture of anybody else. The subjects that dbexp's data
sets show, and their markings, never occur; neither does the token "sks", whose embedding is put at the distance of a
name.

## Recipe
`python -m dbexp.storybook.pretrain --out FOLDER`: Muon for maps between hidden states, AdamW for the rest, averaged
weights, bfloat16 where the hardware has it. The encoder is the principal components of 4 x 4 blocks and stays so; the
decoder and the metric networks also see random hues and abstract shapes. The denoiser predicts v, weighted by min-SNR,
with timesteps spread over each batch and 10 % of the captions dropped. `--from` goes on from the weights in this
folder, at a third of the rates (`--rate 0.3`); `--peer` lets two processes with a core each exchange weights.

| stage | pictures | core hours | held-out figures |
|---|---|---|---|
{rows}

`psnr_*` in dB, of held-out subjects and of pictures with colours that no caption names; `reconstruction_similarity`:
mean cosine, in the space of `dino`, of a held-out subject's pictures and what the autoencoder makes of them;
`same_found`: nearest neighbours that are the same character in another scene, among 128; `caption_found`: captions
found among different ones; `*_oracle`, `*_strangers`: mean cosine of a held-out subject's pictures to itself, and to
others of its class, in prompted scenes; `order_right`: pairs of which the more alike one has the smaller distance.

## Limits
Four classes in one drawing style; nothing else can be asked of it.

## Licence
Our own work, under the licence of dbexp.
"""
