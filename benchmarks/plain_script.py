"""One DreamBooth-LoRA run as people write it without dbexp, for `benchmarks/sweep.py` to compare with.

    python benchmarks/plain_script.py --model FOLDER --folder OUT --shared SHARED model=random lora.rank=4 seed=1

Settings are dbexp's, so that both do the same work: the same steps, pictures, prompts, sampling steps and backbones.
The training loop follows the example script of diffusers (train_dreambooth_lora): LoRA by PEFT, one forward pass for
instance and class rows together, the VAE and the text encoder run at every step. `--caches` encodes pictures and
prompts once instead, as more careful people do. Sampling goes prompt by prompt, all pictures of a prompt in one batch,
and class images in batches of `sample.batch_size`. A careful person also keeps what all runs share: class images for
training, pictures of the base model and features of real photographs are made by the first run and read by the others.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as dbexp does, so that threads are not what is compared

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch.nn import functional as F

from dbexp import api
from dbexp.config.schema import Config
from dbexp.config.template import fill
from dbexp.core.device import pick_device
from dbexp.core.images import prepare, read_rgb
from dbexp.core.store import Store
from dbexp.dataset import load as load_subject
from dbexp.evaluate.evaluate import load_backbones
from dbexp.pipeline.requests import sample_request

_PROJECTIONS = ["to_q", "to_k", "to_v", "to_out.0"]
_PAIRS_AT_ONCE = 16


@contextmanager
def measured(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time of the block to a stage."""
    started = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started


def load(model: Path, config: Config) -> Any:
    """The stock pipeline, with its own fast sampler."""
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(pick_device(config.model.device))


def draw(pipe: Any, prompt: str, count: int, batch_size: int, folder: Path, seed: int, config: Config) -> list[Path]:
    """Pictures of one prompt; what is there already is kept."""
    paths = [folder / f"{number:04}.png" for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, batch_size):
        batch = [path for path in paths[start : start + batch_size] if not path.exists()]
        if not batch:
            continue
        images = pipe(
            prompt,
            num_images_per_prompt=len(batch),
            num_inference_steps=config.sample.steps,
            guidance_scale=config.sample.guidance_scale,
            height=config.sample.resolution,
            width=config.sample.resolution,
            generator=torch.Generator().manual_seed(seed + start),
        ).images
        for path, image in zip(batch, images, strict=True):
            image.save(path)
    return paths


def pixels(paths: Sequence[Path], resolution: int) -> list[torch.Tensor]:
    """Training pictures, centre-cropped, [3, size, size] in [-1, 1]."""
    return [torch.from_numpy(prepare(read_rgb(path), resolution, "bilinear")) for path in paths]


def train(
    pipe: Any, photos: Sequence[Path], classes: Sequence[Path], folder: Path, config: Config, caches: bool
) -> Path:
    """Train a LoRA on the UNet with PEFT, save it, and take it out again."""
    cfg, device = config.train, pipe.device
    torch.manual_seed(config.seeds.init)
    pipe.vae.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    pipe.unet.requires_grad_(False)
    rank = config.lora.rank
    pipe.unet.add_adapter(
        LoraConfig(
            r=rank,
            lora_alpha=config.lora.alpha or rank,
            init_lora_weights="gaussian",
            target_modules=_PROJECTIONS,
        )
    )
    parameters = [parameter for parameter in pipe.unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=cfg.lr, weight_decay=cfg.weight_decay)
    noise = DDPMScheduler.from_config(pipe.scheduler.config)
    instance, prior = pixels(photos, config.model.resolution), pixels(classes, config.model.resolution)
    prompts = [fill(config.dataset.prompt, config.dataset)]
    prompts += [fill(config.prior.prompt, config.dataset)] if classes else []
    ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)

    @torch.no_grad()
    def encode(images: Sequence[torch.Tensor]) -> Any:
        return pipe.vae.encode(torch.stack(list(images)).to(device)).latent_dist

    cached = {id(image): encode([image]) for image in (*instance, *prior)} if caches else {}
    with torch.no_grad():
        states = pipe.text_encoder(ids)[0]
    pipe.unet.train()
    for step in range(cfg.steps * cfg.grad_accum):
        rows = [instance[(step * cfg.batch_size + row) % len(instance)] for row in range(cfg.batch_size)]
        rows += [prior[(step * cfg.batch_size + row) % len(prior)] for row in range(cfg.batch_size if prior else 0)]
        if caches:
            latents = torch.cat([cached[id(image)].sample() for image in rows])
        else:
            latents = encode(rows).sample()
            with torch.no_grad():
                states = pipe.text_encoder(ids)[0]
        latents = latents * pipe.vae.config.scaling_factor
        target = torch.randn_like(latents)
        times = torch.randint(noise.config.num_train_timesteps, (len(rows),), device=device)
        text = states.repeat_interleave(cfg.batch_size, dim=0)
        predicted = pipe.unet(noise.add_noise(latents, target, times), times, text).sample
        if noise.config.prediction_type == "v_prediction":
            target = noise.get_velocity(latents, target, times)
        loss = F.mse_loss(predicted[: cfg.batch_size], target[: cfg.batch_size])
        if prior:
            loss = loss + config.prior.weight * F.mse_loss(predicted[cfg.batch_size :], target[cfg.batch_size :])
        (loss / cfg.grad_accum).backward()
        if (step + 1) % cfg.grad_accum == 0:
            torch.nn.utils.clip_grad_norm_(parameters, cfg.max_grad_norm or float("inf"))
            optimizer.step()
            optimizer.zero_grad()
    pipe.unet.eval()
    weights = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=weights)
    pipe.unet.delete_adapters("default")
    return folder / "pytorch_lora_weights.safetensors"


def evaluate(
    photos: Sequence[Path], samples: dict[str, list[Path]], classes: Sequence[Path], shared: Path, config: Config
) -> dict[str, float]:
    """Load the networks; compare all pairs."""
    backbones = load_backbones(config.evaluate, pick_device(config.model.device))

    def unit(vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors.double(), dim=1)

    size = config.evaluate.batch_size
    flat = [path for paths in samples.values() for path in paths]
    real = {}
    for name, encoder in (("dino", backbones.dino), ("clip", backbones.clip)):
        features = shared / f"real_{name}.npy"
        if not features.exists():
            np.save(features, encoder.embed_images(list(photos), size).numpy())
        real[name] = unit(torch.from_numpy(np.load(features)))
    dino, clip = unit(backbones.dino.embed_images(flat, size)), unit(backbones.clip.embed_images(flat, size))
    texts = unit(backbones.clip.embed_texts(list(samples)))
    prompt_of = [number for number, paths in enumerate(samples.values()) for _ in paths]
    scores = {
        "dino": float((dino @ real["dino"].T).mean()),
        "clip_i": float((clip @ real["clip"].T).mean()),
        "clip_t": float((clip * texts[prompt_of]).sum(1).mean()),
        "pres": float((unit(backbones.dino.embed_images(list(classes), size)) @ real["dino"].T).mean()),
    }
    distances: list[float] = []
    for paths in samples.values():
        images = torch.stack([_square(path, config.evaluate.lpips.size) for path in paths])
        pairs = list(itertools.combinations(range(len(paths)), 2))
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            first, second = (list(side) for side in zip(*pairs[start : start + _PAIRS_AT_ONCE], strict=True))
            with torch.no_grad():
                distances += backbones.lpips.model(images[first], images[second]).flatten().tolist()  # type: ignore[attr-defined]  # the lpips network
    return scores | {"div": float(np.mean(distances))}


def _square(path: Path, size: int) -> torch.Tensor:
    with Image.open(path) as image:
        side = min(size, *image.size)
        pixels = np.asarray(image.convert("RGB").resize((side, side)), dtype=np.float32)
    return torch.from_numpy(pixels.transpose(2, 0, 1)) / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="pipeline folder")
    parser.add_argument("--folder", type=Path, required=True, help="of this run")
    parser.add_argument("--shared", type=Path, required=True, help="what runs share")
    parser.add_argument("--caches", action="store_true", help="encode pictures and prompts once")
    parser.add_argument("overrides", nargs="*", help="dbexp's parameters")
    arguments = parser.parse_args()
    config = api.compose(arguments.overrides)
    folder, shared = arguments.folder, arguments.shared
    folder.mkdir(parents=True, exist_ok=True)
    shared.mkdir(parents=True, exist_ok=True)
    subject = load_subject(config.dataset, Store(shared / "subject"))
    seconds: dict[str, float] = {}
    with measured(seconds, "load"):
        pipe = load(arguments.model, config)
    classes: list[Path] = []
    if config.prior.weight > 0:
        with measured(seconds, "prior"):
            prompt = fill(config.prior.prompt, config.dataset)
            images = shared / f"prior-{config.seeds.prior}"
            classes = draw(
                pipe, prompt, config.prior.count, config.prior.batch_size, images, config.seeds.prior, config
            )
    with measured(seconds, "train"):
        lora = train(pipe, subject.paths, classes, folder, config, arguments.caches)
    prompts, each = list(sample_request(config).sampling.prompts), config.sample.images_per_prompt
    class_prompt, count = fill(config.sample.class_prompt, config.dataset), config.sample.class_images
    seed = config.seeds.sample

    def pictures(images: Path) -> tuple[dict[str, list[Path]], list[Path]]:
        by_prompt = {
            prompt: draw(pipe, prompt, each, each, images / f"{number:02}", seed, config)
            for number, prompt in enumerate(prompts)
        }
        return by_prompt, draw(pipe, class_prompt, count, config.sample.batch_size, images / "class", seed, config)

    with measured(seconds, "sample"):
        if config.sample.base:
            pictures(shared / f"base-{seed}")
        pipe.load_lora_weights(folder, weight_name=lora.name)
        samples, of_class = pictures(folder / "samples")
    with measured(seconds, "evaluate"):
        scores = evaluate(subject.paths, samples, of_class, shared, config)
    print(json.dumps({"scores": scores, "seconds": seconds}))


if __name__ == "__main__":
    main()
