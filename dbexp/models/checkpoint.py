"""What families have in common: a pipeline folder in the layout of diffusers, loaded part by part.

A family derives from `Checkpoint`, names its classes, and writes what is its own: text, times, predictions.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dbexp.config.families import Family
from dbexp.core.device import is_out_of_memory
from dbexp.core.errors import ConfigError, first_line, listed
from dbexp.models import VAE, Batch, Conditioning, Cut, LoraFile, collate, files
from dbexp.models.decode import Decoder
from dbexp.models.host_schedule import keep_on_host
from dbexp.models.known import Known, Settings
from dbexp.models.lora_file import diffusers_layout, kohya_layout
from dbexp.models.native_names import NativeNames, expand
from dbexp.models.outline import Width, layers_of, outline
from dbexp.models.quantize import BYTES, round_to_fp8

_CROWDED = 0.5
"""Share of a device's memory that encoders and denoiser may take together: the rest is for what they compute."""


@cache
def library(name: str) -> Any:
    """diffusers or transformers: both take seconds to import, which a run that finds everything in the store should not
    wait for. Their bars for every file of weights say nothing to somebody who waits for a run."""
    module = importlib.import_module(name)
    module.utils.logging.disable_progress_bar()
    if name == "diffusers":
        library("transformers")  # which pipelines use
    return module


def read_part(cls: Any, folder: Path, **settings: Any) -> Any:
    """A module of diffusers or transformers from its files.

    Args:
        cls: of the module.
        folder: with its configuration and its weights.
        settings: of `from_pretrained`; `dtype` among them.

    Raises:
        ConfigError: it cannot be loaded, or the files lack some of its weights.
    """
    try:
        part, report = cls.from_pretrained(folder, local_files_only=True, output_loading_info=True, **settings)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"model.path={folder.parent}: {folder} cannot be loaded ({first_line(error)})") from None
    if absent := sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"]))):
        # the libraries would fill them with random numbers
        raise ConfigError(f"model.path={folder.parent}: the weights in {folder} lack {listed(absent, most=3)}")
    return part


def read_tokenizer(cls: str, folder: Path) -> Any:
    """A tokenizer of a class of transformers.

    Raises:
        ConfigError: its files cannot be read.
    """
    try:
        return getattr(library("transformers"), cls).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a library of Rust raises its own
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"model.path={folder.parent}: {folder} cannot be read ({first_line(error)})") from None


def characters_read(tokenizer: Any, text: str, limit: int, **options: Any) -> int:
    """How much of a text is left where a tokenizer cuts it to so many tokens, marks among them.

    Args:
        options: of the tokenizer.
    """
    read = tokenizer(text, truncation=True, max_length=limit, return_offsets_mapping=True, **options)
    return max((end for _, end in read.offset_mapping), default=0)


class Checkpoint(ABC):
    """A checkpoint; see the protocol in `dbexp.models`.

    Args:
        name: short name.
        folder: of the pipeline.
        vae_folder: of the VAE.
        variants: part -> variant of its weight files, such as fp16; the others take their plain files.
        device, dtype: of the frozen weights.
        identity: hash of the weights.
        quantize: how the denoiser's weights are stored; None: in `dtype`.

    Attributes:
        parts: those in memory.
    """

    family: Family
    classes: ClassVar[Mapping[str, str]]
    """Part -> library.Class."""
    layout: ClassVar[tuple[str, ...]]
    """Folders of the pipeline folder, the parts among them."""
    pipelines: ClassVar[Mapping[str, str]]
    """Task -> pipeline class of diffusers."""
    extras: ClassVar[Mapping[str, Any]] = {}
    """Arguments of these classes' constructors for what dbexp does without."""
    samplers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]]
    """Name -> scheduler class of diffusers, and settings in which it departs from the checkpoint's."""
    kohya_prefixes: ClassVar[Mapping[str, str]] = {}
    """Part -> what kohya's trainers and ComfyUI call it in the keys of a LoRA file."""
    native: ClassVar[NativeNames] = {}
    """What layers of the denoiser are called in the original checkpoint, where that is not as here."""
    bakes_alpha: ClassVar[bool] = False
    """Whether exported files have alpha in their weights: programs that read no metadata then scale them right."""
    chats: ClassVar[bool] = False
    """Whether the tokenizer must know how a chat is written."""
    known: ClassVar[Known]
    """What the files of a checkpoint may say."""
    vae_defaults: ClassVar[Mapping[str, Any]] = {"scaling_factor": 0.18215}
    """What the VAE's class takes for settings that its file leaves out."""
    tiled_above: ClassVar[int] = 1024
    """Pixels a side above which the VAE works tile by tile, image by image: its memory grows with the area, and at 2048
    pixels is more than that of the denoiser. Tiles meet in a blend, so smaller images are left whole while they fit."""
    output: ClassVar[str] = "np"
    """What pipelines are asked for: images, or `latent`, which `decode` makes images of."""
    read: ClassVar[Callable[..., Any]] = staticmethod(read_part)
    """How a part comes from its folder; a seam for whoever needs its shapes alone."""
    channels_last: ClassVar[bool] = False
    """Whether the convolutions are two-dimensional: the layout they want on tensor cores and on CPUs (oneDNN) alike."""

    def __init__(
        self,
        name: str,
        folder: Path,
        vae_folder: Path,
        *,
        variants: Mapping[str, str | None],
        device: torch.device,
        dtype: torch.dtype,
        identity: str,
        quantize: str | None = None,
    ) -> None:
        self.name, self.identity, self.device, self.dtype = name, identity, device, dtype
        self.quantize = quantize
        self._folder, self._vae_folder, self._variants = folder, vae_folder, variants
        self.parts: dict[str, nn.Module] = {}
        self.before_loading: Callable[[], None] = lambda: None

    @classmethod
    @abstractmethod
    def disagreements(cls, settings: Settings) -> Iterator[tuple[str, str]]:
        """(part, what is wrong) where settings, each of which is known, do not go together.

        Args:
            settings: of all parts, of the scheduler, and of the pipeline as `model_index`.
        """

    # -- parts ------------------------------------------------------------------------------------------------------

    @property
    def vae_dtype(self) -> torch.dtype:
        """Of the VAE: in half precision it is coarse, and some overflow."""
        return torch.float32

    def part(self, name: str) -> nn.Module:
        if name not in self.parts:
            self.before_loading()
            part: Any = self._load(name)
            if name == VAE:
                part.decode = Decoder(part)
            self.parts[name] = part
        return self.parts[name]

    def outline(self, part: str) -> nn.Module:
        """A part for names and widths of its layers: where it is not in memory, as its configuration describes it."""
        package, cls = self.classes[part].split(".")
        return self.parts[part] if part in self.parts else outline(getattr(library(package), cls), self._folder / part)

    def layers(self, part: str) -> Mapping[str, Width]:
        return layers_of(self.outline(part))

    def native_layers(self) -> Mapping[str, tuple[str, ...]]:
        return expand(self.native, self.layers(self.family.denoiser))

    def _load(self, name: str) -> nn.Module:
        package, cls = self.classes[name].split(".")
        folder, dtype = (self._vae_folder, self.vae_dtype) if name == VAE else (self._folder / name, self.dtype)
        loaded = self.read(
            getattr(library(package), cls), folder, variant=self._variants.get(name), dtype=dtype, **self._nf4(name)
        )
        if self.quantize == "fp8" and name == self.family.denoiser:
            casting = importlib.import_module("diffusers.hooks.layerwise_casting")
            round_to_fp8(loaded, casting.DEFAULT_SKIP_MODULES_PATTERN)
        layout = {"memory_format": torch.channels_last} if self.channels_last else {}
        module: nn.Module = loaded.to(self.device, **layout).requires_grad_(False).eval()
        for layer in module.modules():  # checkpointing of memory needs training mode, in which these would drop
            if isinstance(layer, nn.Dropout):
                layer.p = 0.0
        return module

    def _nf4(self, part: str) -> dict[str, Any]:
        """How diffusers is asked for a part whose weights bitsandbytes packs while it loads them."""
        if self.quantize != "nf4" or part != self.family.denoiser:
            return {}
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": self.dtype}
        return {"quantization_config": library("diffusers").BitsAndBytesConfig(**settings)}

    def release(self, *names: str) -> None:
        for name in names:
            self.parts.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def crowded(self) -> bool:
        if self.device.type == "cuda":
            memory = torch.cuda.get_device_properties(self.device).total_memory
        else:
            memory = psutil.virtual_memory().total
        parts = (self.family.denoiser, *self.family.encoders)
        return sum(map(self._bytes, parts)) > _CROWDED * memory

    def _bytes(self, part: str) -> int:
        """What a part takes in memory, by the heads of its files."""
        library_name, _ = self.classes[part].split(".")
        found = files.weights(self._folder / part, library_name, self._variants.get(part))
        heads = [files.head(path) for path in (found.files if found else ()) if path.suffix == ".safetensors"]
        tensors = [entry for head in heads for name, entry in head.items() if name != "__metadata__"]
        numbers = sum(math.prod(entry["shape"]) for entry in tensors)
        itemsize = BYTES[self.quantize] if part == self.family.denoiser else None
        return int(numbers * (itemsize or self.dtype.itemsize))

    def enable_gradient_checkpointing(self, enabled: bool) -> None:
        for name in self.family.parts:
            module: Any = self.parts.get(name)  # a part that was released is not loaded for this
            if module is None or module.training == enabled:
                continue
            # diffusers' name, transformers' name from version 6 on, and before
            stems = ("{}_gradient_checkpointing", "activation_checkpointing_{}", "gradient_checkpointing_{}")
            switches = [stem.format("enable" if enabled else "disable") for stem in stems]
            next(getattr(module, switch) for switch in switches if hasattr(module, switch))()
            module.train(enabled)  # both libraries checkpoint in training mode only

    def _settings(self, *path: str) -> dict[str, Any]:
        """A JSON file of the pipeline folder."""
        settings: dict[str, Any] = json.loads(self._folder.joinpath(*path).read_text(encoding="utf-8"))
        return settings

    # -- text -------------------------------------------------------------------------------------------------------

    @abstractmethod
    def cuts(self, text: str) -> tuple[Cut, ...]:
        """See `Model.cuts`."""

    @abstractmethod
    def tokenize(self, prompts: Sequence[str]) -> Conditioning:
        """See `Model.tokenize`."""

    @abstractmethod
    def encode(self, tokens: Conditioning) -> Conditioning:
        """See `Model.encode`."""

    def unconditional(self, negative: str) -> Conditioning:
        return self.encode(self.tokenize([negative]))

    def collate(self, parts: Sequence[tuple[Conditioning, Sequence[int]]]) -> Conditioning:
        return collate(parts)

    # -- sampling ---------------------------------------------------------------------------------------------------

    @property
    def needs_mask(self) -> bool:
        return False

    @property
    def sampler(self) -> str:
        return str(self._settings("scheduler", "scheduler_config.json")["_class_name"])

    def guided(self, guidance: float) -> bool:
        return guidance > 1

    def _scheduler(self, sampler: str | None) -> Any:
        settings = self._settings("scheduler", "scheduler_config.json")
        name, changes = (settings["_class_name"], {}) if sampler is None else self.samplers[sampler]
        cls = getattr(library("diffusers"), name)
        settings.setdefault("flow_shift", settings.get("shift", 1.0))  # as UniPC calls it
        # the checkpoint's settings that this sampler knows: handing on the others only draws warnings
        known = set(inspect.signature(cls.__init__).parameters)
        return cls.from_config({key: value for key, value in settings.items() if key in known}, **changes)

    def pipeline(self, sampler: str | None, task: str = "text") -> Any:
        parts: dict[str, Any] = dict.fromkeys(self.layout)
        parts |= {name: self.part(name) for name in (self.family.denoiser, VAE)}
        parts["scheduler"] = self._scheduler(sampler)
        if self.device.type == "cuda":
            keep_on_host(parts["scheduler"], self.device)
        pipe = getattr(library("diffusers"), self.pipelines[task])(**parts, **self.extras)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: Any, batch: Batch) -> NDArray[np.floating[Any]]:
        change = self._after_step(pipe, batch)

        def after_step(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            batch.after_step(step + 1, pipe.num_timesteps)
            return {} if change is None else {"latents": change(pipe, step, tensors["latents"])}

        vae: Any = self.part(VAE)
        vae.use_tiling = vae.use_slicing = max(batch.width, batch.height) > self.tiled_above or vae.decode.tiled
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds]
        images: NDArray[np.floating[Any]] = pipe(
            **{"generator": generators, **self.call(pipe, batch)},
            output_type=self.output,
            callback_on_step_end=after_step,
        ).images
        return images if self.output == "np" else self.decode(pipe, images, batch)

    def decode(self, pipe: Any, latents: Any, batch: Batch) -> NDArray[np.floating[Any]]:
        """Images [B, H, W, 3] in [0, 1] of the latents that a pipeline drew for a batch: it would hand them to the VAE
        in the precision of the denoiser."""
        with torch.inference_mode():
            decoded = pipe.vae.decode(latents.to(pipe.vae.dtype), return_dict=False)[0]
            images: NDArray[np.floating[Any]] = pipe.image_processor.postprocess(decoded, output_type="np")
        return images

    def _after_step(self, pipe: Any, batch: Batch) -> Callable[[Any, int, Tensor], Tensor] | None:
        """What is made of the latents [B, C, h, w] of a batch after a step: (pipeline, step, latents) -> latents."""
        return None

    def call(self, pipe: Any, batch: Batch) -> dict[str, Any]:
        """A pipeline's arguments for a batch, but for what comes out; generators, where some were drawn from already.

        Args:
            pipe: one of this model's, or a stock pipeline, which takes prompts as text.
        """
        text = {"prompt": list(batch.text)} if isinstance(batch.text, tuple) else self.embeddings(batch)
        count = len(batch.seeds)
        arguments: dict[str, Any] = {"num_inference_steps": batch.steps, **self.guidance(batch.guidance)}
        if batch.image is None or batch.mask is not None:
            arguments |= {"height": batch.height, "width": batch.width}
        if batch.image is not None:
            # as many as there are rows, so that each is encoded with its own generator
            arguments |= {"image": [batch.image] * count, "strength": batch.strength}
        if batch.mask is not None:
            arguments["mask_image"] = [batch.mask] * count
        return text | arguments

    @abstractmethod
    def embeddings(self, batch: Batch) -> dict[str, Any]:
        """A pipeline's arguments for the text of a batch that is conditioning."""

    def guidance(self, value: float) -> dict[str, Any]:
        """A pipeline's arguments for a guidance, where 1 is none."""
        return {"guidance_scale": value}

    def stock_pipeline(self, lora: Path | None) -> Any:
        diffusers = library("diffusers")
        # of the parts that the pipeline loads; those that lack it take their plain files there, too
        variants = [variant for part, variant in self._variants.items() if part != VAE and variant]
        pipe = (
            getattr(diffusers, self.pipelines["text"])
            .from_pretrained(
                self._folder,
                vae=self._load(VAE),
                variant=next(iter(variants), None),
                dtype=self.dtype,
                local_files_only=True,
                **self.extras,
            )
            .to(self.device)
        )
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

    # -- files ------------------------------------------------------------------------------------------------------

    @property
    def formats(self) -> tuple[str, ...]:
        return self.family.formats

    def saved_site(self, part: str, site: str) -> str:
        return site

    def export(self, file: LoraFile, format: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        if format == "kohya":
            return kohya_layout(file, self.kohya_prefixes, self.saved_site)
        return diffusers_layout(file.baked() if self.bakes_alpha else file, self.saved_site)
