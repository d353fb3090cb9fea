"""Stable Diffusion 1.x and 2.x (Rombach et al., arXiv 2112.10752): a VAE, a UNet, CLIP's text encoder."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig, TrainConfig
from dbexp.core.device import pick_device, pick_dtype
from dbexp.core.errors import ConfigError, first_line
from dbexp.core.files import locate
from dbexp.core.hashing import key_of
from dbexp.core.store import Store
from dbexp.models import Conditioning, collate

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

log = logging.getLogger(__name__)

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
_TEXT_SITES = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
_PIPELINES = {
    "text": "StableDiffusionPipeline",
    "image": "StableDiffusionImg2ImgPipeline",
    "inpaint": "StableDiffusionInpaintPipeline",
}
_INPAINT_CHANNELS = 9  # of the noisy latents (4), the mask (1) and the masked picture's latents (4)
_SINGLE_FILES = (".safetensors", ".ckpt")
_PARTS = ("vae", "unet", "text_encoder", "tokenizer", "scheduler")


# Both libraries take seconds to import, which a run that finds everything in the store should not wait for. A bar per
# file of weights says nothing to somebody who waits for a run.


@cache
def _diffusers() -> Any:
    import diffusers

    _transformers()  # which pipelines use
    diffusers.utils.logging.disable_progress_bar()
    return diffusers


@cache
def _transformers() -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers


class StableDiffusion:
    """A checkpoint in the usual folder layout. Parts are loaded when first used; see the protocol in `dbexp.models`.

    Args:
        name: short name.
        folder: pipeline folder with vae, unet, text_encoder, tokenizer, scheduler.
        vae_folder: folder of the VAE.
        variant: weight file variant such as fp16.
        device, dtype: of the frozen weights.
        identity: hash of the weights.
    """

    family = FAMILIES["sd"]
    crowded = False
    """Both are small."""

    def __init__(
        self,
        name: str,
        folder: Path,
        vae_folder: Path,
        *,
        variant: str | None,
        device: torch.device,
        dtype: torch.dtype,
        identity: str,
    ) -> None:
        self.name, self.identity, self.device, self.dtype = name, identity, device, dtype
        self._folder, self._vae_folder, self._variant = folder, vae_folder, variant

    # -- parts ------------------------------------------------------------------------------------------------------

    def _load(self, cls: Any, folder: Path) -> Any:
        loaded = cls.from_pretrained(folder, variant=self._variant, dtype=self.dtype, local_files_only=True)
        # the layout that convolutions want on tensor cores and on CPUs (oneDNN) alike; the others are left as they are
        return loaded.to(self.device, memory_format=torch.channels_last).requires_grad_(False).eval()

    @cached_property
    def vae(self) -> AutoencoderKL:
        """The autoencoder between pixels and latents."""
        vae: AutoencoderKL = self._load(_diffusers().AutoencoderKL, self._vae_folder)
        return vae

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser."""
        unet: UNet2DConditionModel = self._load(_diffusers().UNet2DConditionModel, self._folder / "unet")
        return unet

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The text encoder."""
        encoder: CLIPTextModel = self._load(_transformers().CLIPTextModel, self._folder / "text_encoder")
        return encoder

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        """The tokenizer."""
        folder = self._folder / "tokenizer"
        tokenizer: CLIPTokenizer = _transformers().CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        return tokenizer

    @cached_property
    def _noise(self) -> DDPMScheduler:
        folder = self._folder / "scheduler"
        noise: DDPMScheduler = _diffusers().DDPMScheduler.from_pretrained(folder, local_files_only=True)
        return noise

    def part(self, name: str) -> nn.Module:
        module: nn.Module = {"unet": lambda: self.unet, "text_encoder": lambda: self.text_encoder}[name]()
        return module

    def release(self, *names: str) -> None:
        for name in names:
            self.__dict__.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def sites(self, part: str, preset: str) -> tuple[str, ...]:
        wanted = _SITES[preset] if part == "unet" else lambda name: name.endswith(_TEXT_SITES)
        modules = self.part(part).named_modules()
        return tuple(name for name, module in modules if isinstance(module, nn.Linear) and wanted(name))

    def kohya_prefix(self, part: str) -> str:
        return {"unet": "lora_unet", "text_encoder": "lora_te"}[part]

    def saved_site(self, part: str, site: str) -> str:
        # transformers 5 dropped the inner module `text_model`; LoRA files everywhere still carry its name
        return f"text_model.{site}" if part == "text_encoder" and not site.startswith("text_model.") else site

    def enable_gradient_checkpointing(self, enabled: bool) -> None:
        for name in ("unet", "text_encoder"):
            module = self.__dict__.get(name)  # a part that was released is not loaded for this
            if module is None or module.training == enabled:
                continue
            # diffusers' name, transformers' name from version 6 on, and before
            stems = ("{}_gradient_checkpointing", "activation_checkpointing_{}", "gradient_checkpointing_{}")
            switches = [stem.format("enable" if enabled else "disable") for stem in stems]
            next(getattr(module, switch) for switch in switches if hasattr(module, switch))()
            module.train(enabled)  # both libraries checkpoint in training mode only; neither model has dropout

    # -- text -------------------------------------------------------------------------------------------------------

    @property
    def max_tokens(self) -> int:
        return int(self.tokenizer.model_max_length)

    def token_count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False).input_ids)

    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        ids: Tensor = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).input_ids
        return {"ids": ids.to(self.device)}

    def encode(self, tokens: Conditioning) -> Conditioning:
        return {"states": self.text_encoder(tokens["ids"])[0]}

    def collate(self, parts: Sequence[tuple[Conditioning, Sequence[int]]]) -> Conditioning:
        return collate(parts)

    # -- latents ----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels.to(self.device, self.dtype)).latent_dist
        scale = float(self.vae.config.scaling_factor)
        return posterior.mean.float().contiguous() * scale, posterior.std.float().contiguous() * scale

    def draw_times(self, count: int, generator: torch.Generator, cfg: TrainConfig, resolution: int) -> Tensor:
        return torch.randint(int(self._noise.config.num_train_timesteps), (count,), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        noisy: Tensor = self._noise.add_noise(latents, noise, times)
        return noisy

    def target(self, latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        if self._noise.config.prediction_type == "epsilon":
            return noise
        velocity: Tensor = self._noise.get_velocity(latents, noise, times)
        return velocity

    def loss_weight(self, times: Tensor, cfg: TrainConfig) -> Tensor | None:
        if cfg.min_snr_gamma is None:
            return None
        alphas = self._noise.alphas_cumprod.to(times.device)[times]
        snr = alphas / (1 - alphas)
        least = snr.clamp(max=cfg.min_snr_gamma)
        weight: Tensor = least / snr if self._noise.config.prediction_type == "epsilon" else least / (snr + 1)
        return weight

    def predict(self, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        states = conditioning["states"].to(self.dtype)
        sample: Tensor = self.unet(noisy.to(self.dtype), times, encoder_hidden_states=states).sample
        return sample

    # -- sampling ---------------------------------------------------------------------------------------------------

    @property
    def needs_mask(self) -> bool:
        settings = json.loads((self._folder / "unet" / "config.json").read_text(encoding="utf-8"))
        return bool(settings.get("in_channels") == _INPAINT_CHANNELS)

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        own = json.loads((self._folder / "scheduler" / "scheduler_config.json").read_text())
        class_name, extra = (own["_class_name"], {}) if sampler is None else _SAMPLERS[sampler]
        cls = getattr(_diffusers(), class_name)
        # the checkpoint's settings that this sampler knows: handing on the others only draws warnings
        known = set(inspect.signature(cls.__init__).parameters)
        scheduler = cls.from_config({key: value for key, value in own.items() if key in known}, **extra)
        pipe = getattr(_diffusers(), _PIPELINES[task])(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def stock_pipeline(self, lora: Path | None) -> Any:
        diffusers = _diffusers()
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            self._folder,
            vae=self._load(diffusers.AutoencoderKL, self._vae_folder),
            variant=self._variant,
            dtype=self.dtype,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            local_files_only=True,
        ).to(self.device)
        pipe.set_progress_bar_config(disable=True)
        if lora is not None:
            # it warns of every LoRA without text encoder, and asks to report that as a fault
            verbosity = diffusers.utils.logging.get_verbosity()
            diffusers.utils.logging.set_verbosity_error()
            try:
                pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
            finally:
                diffusers.utils.logging.set_verbosity(verbosity)
        return pipe


def load(cfg: ModelConfig, store: Store) -> StableDiffusion:
    """Find a checkpoint (random, folder, single file or hub id) and hash it; weights are read when first used.

    Raises:
        ConfigError: it is not there, or is no Stable Diffusion 1.x/2.x checkpoint.
    """
    folder = _find(cfg, store)
    _check_layout(cfg, folder)
    vae_folder = folder / "vae" if cfg.vae is None else _find_vae(cfg.vae)
    files = sorted(path for part in _PARTS if part != "vae" for path in (folder / part).rglob("*") if path.is_file())
    files += sorted(path for path in vae_folder.rglob("*") if path.is_file())
    files = [path for path in files if path.suffix in (".safetensors", ".bin", ".json", ".txt")]
    identity = key_of({f"{path.parent.name}/{path.name}": store.file_hash(path) for path in files})
    device = pick_device(cfg.device)
    return StableDiffusion(
        cfg.name,
        folder,
        vae_folder,
        variant=cfg.variant,
        device=device,
        dtype=pick_dtype(cfg.precision, device),
        identity=identity,
    )


def _find(cfg: ModelConfig, store: Store) -> Path:
    """The pipeline folder of a checkpoint, on this machine."""
    if cfg.path == "random":
        from dbexp.models import random_weights

        size = random_weights.SMALL
        inputs = {"version": random_weights.VERSION, "size": size.to_json(), "seed": 0}

        def make(place: Path) -> None:
            _diffusers()  # which silences the bars of what is saved, too
            random_weights.build(place, size, seed=0)

        return store.get("model", inputs, make)
    local = locate(cfg.path)
    if local.is_dir():
        return local.absolute()
    if local.is_file():
        return _convert_single_file(cfg, local, store)
    here = local.is_absolute() or cfg.path.startswith((".", "~")) or local.suffix in _SINGLE_FILES
    if here or cfg.path.count("/") != 1:
        raise ConfigError(f"model.path={cfg.path}: there is no such folder or file, and it is no hub id (owner/name)")
    try:
        return Path(
            _diffusers().StableDiffusionPipeline.download(
                cfg.path, revision=cfg.revision, variant=cfg.variant, safety_checker=None, feature_extractor=None
            )
        )
    except Exception as error:  # the hub client raises half a dozen unrelated classes for "not to be had"
        raise ConfigError(
            f"model.path={cfg.path}: not on this machine, and the hub did not give it "
            f"({first_line(error, typed=True)}); pass model.path=FOLDER of a downloaded pipeline, "
            "or a .safetensors file"
        ) from None


def _convert_single_file(cfg: ModelConfig, file: Path, store: Store) -> Path:
    """A single-file checkpoint as a pipeline folder, converted once and kept in the store."""

    def make(place: Path) -> None:
        try:
            pipe = _diffusers().StableDiffusionPipeline.from_single_file(
                str(file), config=cfg.single_file_config, safety_checker=None, local_files_only=False
            )
        except Exception as error:
            raise ConfigError(
                f"model.path={cfg.path}: could not be read as a Stable Diffusion checkpoint "
                f"({first_line(error, typed=True)}); without network also pass model.single_file_config=FOLDER of a "
                "pipeline of the same architecture"
            ) from None
        pipe.save_pretrained(place, safe_serialization=True)

    config_hash = cfg.single_file_config and key_of({"config": cfg.single_file_config})
    return store.get("model", {"version": 1, "file": store.file_hash(file), "config": config_hash}, make)


def _find_vae(path: str) -> Path:
    local = Path(path).expanduser()
    if local.is_dir():
        return local.absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise ConfigError(
            f"model.vae={path}: not a folder here, and the hub did not give it ({type(error).__name__}); "
            "pass the folder of a downloaded VAE, or null"
        ) from None


def _check_layout(cfg: ModelConfig, folder: Path) -> None:
    """The folder must hold the parts, and its denoiser must be this family's."""
    lacking = [part for part in _PARTS if not (folder / part).is_dir() and not (part == "vae" and cfg.vae)]
    if lacking:
        raise ConfigError(
            f"model.path={cfg.path}: {folder} lacks {', '.join(lacking)}; expected a diffusers pipeline folder with "
            f"{', '.join(_PARTS)}"
        )
    settings = folder / "unet" / "config.json"
    try:
        kind = json.loads(settings.read_text(encoding="utf-8")).get("_class_name")
    except (OSError, ValueError, AttributeError):
        raise ConfigError(f"model.path={cfg.path}: {settings} is missing or damaged") from None
    second_encoder = (folder / "text_encoder_2").exists()
    if kind != "UNet2DConditionModel" or second_encoder:
        raise ConfigError(
            f"model.path={cfg.path}: not a Stable Diffusion 1.x or 2.x checkpoint (denoiser {kind}"
            f"{', two text encoders' if second_encoder else ''}); model.family={cfg.family} covers only those"
        )
