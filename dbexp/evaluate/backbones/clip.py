"""The CLIP backbone (Radford et al., arXiv 2103.00020) through open_clip: columns `clip_i`, `clip_t`, `clip_t_token`.

The paper's is ViT-B/32 with OpenAI's weights, which compute QuickGELU. open_clip also has a plain `ViT-B-32`, which
loads the same weights and silently computes something else; this module refuses it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from dbexp.config.schema import ClipConfig
from dbexp.core.errors import ConfigError
from dbexp.core.files import locate
from dbexp.core.images import read_rgb
from dbexp.evaluate.backbones.base import (
    RANDOM,
    Network,
    load_strictly,
    options,
    read_state_dict,
    seeded,
    strict_fp32,
    unreachable,
)

_SCHEMAS = ("local-dir:", "hf-hub:")
_PARTS = {"embed_dim", "vision_cfg", "text_cfg"}


class Clip(Network):
    """Pictures and texts to CLIP embeddings.

    Raises:
        ConfigError: naming the field under evaluate.clip, and what to pass instead.
    """

    def __init__(self, cfg: ClipConfig, device: torch.device) -> None:
        with _source(cfg) as source:
            model = _build(cfg, source)
            self.tokenizer = open_clip.get_tokenizer(source)
        _require_quick_gelu(_computes_quick_gelu(model), cfg)
        preprocess = open_clip.transform.PreprocessCfg(**model.visual.preprocess_cfg)
        self.preprocess = open_clip.transform.image_transform_v2(preprocess, is_train=False)
        self.context_length = int(self.tokenizer.context_length)
        name = Path(cfg.name).name if cfg.name.startswith("local-dir:") else cfg.name
        super().__init__(
            cfg,
            model,
            device,
            name=f"open_clip/{name}{options(cfg.kwargs)}",
            weights=cfg.weights,
            transform=f"1: open_clip {preprocess}",
        )

    def reader(self, paths: Sequence[Path]) -> Callable[[Path], Tensor]:
        """open_clip's own transform of the model; the paths do not matter."""
        return lambda path: self.preprocess(read_rgb(path))

    def encode(self, pixels: Tensor) -> Tensor:
        """The projected embedding."""
        features: Tensor = self.model.encode_image(pixels)
        return features

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D] float32 on the CPU, not normalised.

        Args:
            texts: N >= 1 prompts; what exceeds `context_length` tokens is not read.
        """
        with strict_fp32(self.device):
            tokens = self.tokenizer(list(texts)).to(self.device)
            return torch.cat([self.model.encode_text(chunk) for chunk in tokens.split(64)]).float().cpu()

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """For each text: is it longer than `context_length` tokens?

        A cut text ends in the end token at the last position, where a longer window shows another one.
        """
        short = self.tokenizer(list(texts), context_length=self.context_length)
        long = self.tokenizer(list(texts), context_length=self.context_length + 1)
        return [bool(differs) for differs in (short != long[:, : self.context_length]).any(dim=1)]


@contextmanager
def _source(cfg: ClipConfig) -> Iterator[str]:
    """The name by which open_clip finds the architecture: for one described in `kwargs`, of a temporary folder."""
    if cfg.name.startswith("local-dir:"):
        folder = locate(cfg.name.removeprefix("local-dir:"))
        if cfg.weights in (None, RANDOM) and not (folder / "open_clip_config.json").is_file():
            raise ConfigError(f"evaluate.clip.name={cfg.name}: a folder with open_clip_config.json is expected there")
        yield f"local-dir:{folder}"
        return
    if cfg.name.startswith(_SCHEMAS) or cfg.name in open_clip.list_models():
        yield cfg.name
        return
    if not cfg.kwargs.keys() >= _PARTS:
        raise ConfigError(
            f"evaluate.clip.name={cfg.name}: open_clip has no such model; the paper's is ViT-B-32-quickgelu, "
            f"and an architecture of your own needs {', '.join(sorted(_PARTS))} in evaluate.clip.kwargs"
        )
    with tempfile.TemporaryDirectory() as temporary:
        described = {"model_cfg": {"quick_gelu": cfg.quick_gelu, **cfg.kwargs}, "preprocess_cfg": {}}
        (Path(temporary) / "open_clip_config.json").write_text(json.dumps(described))
        yield f"local-dir:{temporary}"


def _build(cfg: ClipConfig, source: str) -> Any:
    brings_weights = cfg.name.startswith(_SCHEMAS)
    described = not brings_weights and source != cfg.name
    kwargs = {} if described else cfg.kwargs
    if brings_weights and cfg.weights not in (None, RANDOM):
        raise ConfigError(
            f"evaluate.clip.weights={cfg.weights}: {cfg.name} brings its own weights; set evaluate.clip.weights=null"
        )
    if not brings_weights and cfg.weights is None:
        raise ConfigError(f"evaluate.clip.weights=null: {cfg.name} needs a tag such as openai, a local file, or random")
    tags = [] if brings_weights or described else open_clip.list_pretrained_tags_by_model(cfg.name)
    if brings_weights and cfg.weights is None:
        return _ready_made(cfg, source, pretrained=None)
    if cfg.weights in tags:
        # before a download of hundreds of megabytes; the network itself is looked at afterwards
        _require_quick_gelu({**open_clip.get_model_config(source), **kwargs}.get("quick_gelu", False), cfg)
        return _ready_made(cfg, source, pretrained=cfg.weights)
    try:
        with seeded(), _without_warnings():
            model = open_clip.create_model(
                source, load_weights=False, pretrained_image=False, pretrained_text=False, **kwargs
            )
    except Exception as error:  # open_clip wraps what its towers raise in no common class
        raise ConfigError(f"evaluate.clip.kwargs={cfg.kwargs}: {cfg.name} refuses them ({error})") from error
    if cfg.weights != RANDOM:
        _load_file(model, str(cfg.weights), tags)
    return model


@contextmanager
def _without_warnings() -> Iterator[None]:
    """open_clip warns that weights are random; here they are wanted so, or loaded in the next moment."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _ready_made(cfg: ClipConfig, source: str, pretrained: str | None) -> Any:
    try:
        return open_clip.create_model(source, pretrained=pretrained, require_pretrained=True, **cfg.kwargs)
    except Exception as error:  # the network fails in as many ways as there are libraries below open_clip
        file = "a local checkpoint, or evaluate.clip.name=local-dir:FOLDER with evaluate.clip.weights=null"
        raise unreachable(
            "evaluate.clip.weights", cfg.weights, f"{cfg.name} could not be loaded", error, file
        ) from error


def _load_file(model: nn.Module, path: str, tags: Sequence[str]) -> None:
    field = "evaluate.clip.weights"
    if not locate(path).is_file():
        problem = f"neither one of its tags ({', '.join(tags)}) nor a file" if tags else "no such file"
        raise ConfigError(f"{field}={path}: {problem}; give a checkpoint (.safetensors, .pth, .pt), or random")
    tensors = read_state_dict(path, field)
    tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    load_strictly(model, tensors, field, path)


def _require_quick_gelu(has_it: bool, cfg: ClipConfig) -> None:
    if has_it:
        return
    if cfg.weights == "openai":
        raise ConfigError(
            f"evaluate.clip.name={cfg.name}: computes GELU, and OpenAI's weights need QuickGELU; "
            f"use evaluate.clip.name={cfg.name}-quickgelu"
        )
    if cfg.quick_gelu:
        raise ConfigError(
            f"evaluate.clip.quick_gelu=true: {cfg.name} computes GELU; set evaluate.clip.quick_gelu=false if its "
            "weights were trained with that, or choose an architecture with QuickGELU"
        )


def _computes_quick_gelu(model: nn.Module) -> bool:
    """Look at the activations that open_clip's own towers really have; towers of other libraries have none of these."""
    activations = [module for name, module in model.named_modules() if name.endswith(".mlp.gelu")]
    return all(isinstance(activation, QuickGELU) for activation in activations)
