"""Where a checkpoint is on this machine: random weights, a folder, a single file, or a repository of the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dbexp.config.schema import ModelConfig
from dbexp.core.device import pick_device, pick_dtype
from dbexp.core.environment import hub_switched_off
from dbexp.core.errors import ConfigError, first_line
from dbexp.core.files import locate
from dbexp.core.hashing import key_of
from dbexp.core.store import Store
from dbexp.models import VAE, quantize
from dbexp.models.checkpoint import Checkpoint, library

_SINGLE_FILES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Source:
    """How checkpoints of a family are found.

    Attributes:
        random: what random weights depend on, JSON-like; called when they are asked for.
        build: writes a pipeline folder of random weights.
        check: raises ConfigError if a pipeline folder is of another family.
        suffixes: of the files whose bytes are part of a checkpoint's identity.
        files: such files beside the folders of the layout.
    """

    random: Callable[[], Mapping[str, Any]]
    build: Callable[[Path], object]
    check: Callable[[ModelConfig, Path], None]
    suffixes: tuple[str, ...] = (".safetensors", ".bin", ".json", ".txt", ".jinja", ".model")
    files: tuple[str, ...] = ("model_index.json",)


def check_pipeline(kind: type[Checkpoint]) -> Callable[[ModelConfig, Path], None]:
    """`Source.check` of a family that has pipelines to itself."""

    def check(cfg: ModelConfig, folder: Path) -> None:
        path = folder / "model_index.json"
        try:
            name = json.loads(path.read_text(encoding="utf-8")).get("_class_name")
        except (OSError, ValueError, AttributeError):
            raise ConfigError(f"model.path={cfg.path}: {path} is missing or damaged") from None
        if name not in kind.pipelines.values():
            raise ConfigError(
                f"model.path={cfg.path}: not a checkpoint of {kind.family.title} (its pipeline is {name}); "
                f"model.family={cfg.family} covers only those"
            )

    return check


Kind = TypeVar("Kind", bound=Checkpoint)


def open_checkpoint(kind: type[Kind], source: Source, cfg: ModelConfig, store: Store) -> Kind:
    """Find a checkpoint (random, folder, single file or hub id) and hash it; weights are read when first used.

    Raises:
        ConfigError: it is not there, or is not of the family; or this machine cannot quantise it so.
    """
    if cfg.precision == "fp16" and not kind.family.fp16:
        raise ConfigError(f"precision=fp16: {kind.family.title} overflows in it; give bf16 or fp32")
    device = pick_device(cfg.device)
    quantize.require(cfg.quantize, device)
    folder = _folder(kind, source, cfg, store)
    lacking = [name for name in kind.layout if not (folder / name).is_dir() and not (name == VAE and cfg.vae)]
    if lacking:
        raise ConfigError(
            f"model.path={cfg.path}: {folder} lacks {', '.join(lacking)}; expected a diffusers pipeline folder with "
            f"{', '.join(kind.layout)}"
        )
    source.check(cfg, folder)
    vae_folder = folder / VAE if cfg.vae is None else _vae_folder(cfg.vae)
    folders = [*(folder / name for name in kind.layout if name != VAE), vae_folder]
    files = [path for each in folders for path in sorted(each.rglob("*")) if path.suffix in source.suffixes]
    hashes = {f"{path.parent.name}/{path.name}": store.file_hash(path) for path in files if path.is_file()}
    hashes |= {name: store.file_hash(folder / name) for name in source.files if (folder / name).is_file()}
    identity = key_of(hashes)
    return kind(
        cfg.name,
        folder,
        vae_folder,
        variant=cfg.variant,
        device=device,
        dtype=pick_dtype(cfg.precision, device, fp16=kind.family.fp16),
        identity=identity if cfg.quantize is None else key_of({"base": identity, "quantize": cfg.quantize}),
        quantize=cfg.quantize,
    )


def _folder(kind: type[Checkpoint], source: Source, cfg: ModelConfig, store: Store) -> Path:
    """The pipeline folder of a checkpoint, on this machine."""
    if cfg.path == "random":

        def make(folder: Path) -> None:
            library("diffusers")  # which silences the bars of what is saved, too
            source.build(folder)

        return store.get("model", source.random(), make)
    local = locate(cfg.path)
    if local.is_dir():
        return local.absolute()
    if local.is_file():
        return _convert_single_file(kind, cfg, local, store)
    here = local.is_absolute() or cfg.path.startswith((".", "~")) or local.suffix in _SINGLE_FILES
    if here or cfg.path.count("/") != 1:
        raise ConfigError(f"model.path={cfg.path}: there is no such folder or file, and it is no hub id (owner/name)")
    try:
        return Path(_pipeline(kind).download(cfg.path, revision=cfg.revision, variant=cfg.variant, **_without(kind)))
    except Exception as error:  # the hub client raises half a dozen unrelated classes for "not to be had"
        reason = hub_switched_off() or first_line(error, typed=True)
        raise ConfigError(
            f"model.path={cfg.path}: not on this machine, and the hub did not give it ({reason}); "
            "pass model.path=FOLDER of a downloaded pipeline, or a .safetensors file"
        ) from None


def _pipeline(kind: type[Checkpoint]) -> Any:
    return getattr(library("diffusers"), kind.pipelines["text"])


def _without(kind: type[Checkpoint]) -> dict[str, None]:
    """Parts that need not be downloaded."""
    return {name: None for name, value in kind.extras.items() if value is None}


def _convert_single_file(kind: type[Checkpoint], cfg: ModelConfig, file: Path, store: Store) -> Path:
    """A single-file checkpoint as a pipeline folder, converted once and kept in the store."""
    if not hasattr(_pipeline(kind), "from_single_file"):
        raise ConfigError(
            f"model.path={cfg.path}: diffusers reads {kind.family.title} from no single file; pass the folder of a "
            "pipeline, or its hub id"
        )

    def make(folder: Path) -> None:
        try:
            pipe = _pipeline(kind).from_single_file(
                str(file), config=cfg.single_file_config, local_files_only=False, **_without(kind)
            )
        except Exception as error:
            raise ConfigError(
                f"model.path={cfg.path}: could not be read as a checkpoint of {kind.family.title} "
                f"({first_line(error, typed=True)}); without network also pass model.single_file_config=FOLDER of a "
                "pipeline of the same architecture"
            ) from None
        pipe.save_pretrained(folder, safe_serialization=True)

    config_hash = cfg.single_file_config and key_of({"config": cfg.single_file_config})
    return store.get("model", {"version": 1, "file": store.file_hash(file), "config": config_hash}, make)


def _vae_folder(path: str) -> Path:
    local = Path(path).expanduser()
    if local.is_dir():
        return local.absolute()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        reason = hub_switched_off() or type(error).__name__
        raise ConfigError(
            f"model.vae={path}: not a folder here, and the hub did not give it ({reason}); "
            "pass the folder of a downloaded VAE, or null"
        ) from None
