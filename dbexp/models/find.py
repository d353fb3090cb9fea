"""Where a checkpoint is on this machine: random weights, a folder, a single file, or a repository of the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.device import compute_deterministically, pick_device, pick_dtype
from dbexp.core.environment import hub_switched_off
from dbexp.core.errors import ConfigError, first_line
from dbexp.core.files import locate
from dbexp.core.hashing import key_of
from dbexp.core.store import Store
from dbexp.models import VAE, quantize, unfit
from dbexp.models.checkpoint import Checkpoint, library
from dbexp.models.files import Weights, damage, head, is_weights, settings

_SINGLE_FILES = (".safetensors", ".ckpt")
_MARKS = {"cond_stage_model.": "sd", "conditioner.embedders.1.": "sdxl"}
"""How the names of tensors in single files begin -> their family."""
_SAME_FILES = {
    # the storybook's text encoder, which names fp32 as its precision where it named fp16; dbexp reads neither
    "23bffc72c88881d6cea66b90a95a0f79507efaf1ddc12a2ce97c547680c5abcf": (
        "3f46ca259b47e7f3c35268adf68061e3fa2271f59220169f0a50cff02683c174"
    ),
}
"""Hash of a file -> that of an earlier one which says the same to dbexp: what was computed with it is still found."""
_LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.down.", ".lora.up.")


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
        index = settings(path)
        if index is None:
            raise ConfigError(f"model.path={cfg.path}: {path} is missing or damaged")
        if index.get("_class_name") not in kind.pipelines.values():
            raise ConfigError(
                f"model.path={cfg.path}: not a checkpoint of {kind.family.title} (its pipeline is "
                f"{index.get('_class_name')}); model.family={cfg.family} covers only those"
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
    compute_deterministically(cfg.deterministic, device)
    quantize.require(cfg.quantize, device)
    folder = _folder(kind, source, cfg, store)
    unfit.refuse_other_family(kind, cfg, folder)
    lacking = [name for name in kind.layout if not (folder / name).is_dir() and not (name == VAE and cfg.vae)]
    if lacking:
        raise ConfigError(
            f"model.path={cfg.path}: {folder} lacks {', '.join(lacking)}; expected a diffusers pipeline folder with "
            f"{', '.join(kind.layout)}"
        )
    source.check(cfg, folder)
    vae_folder = folder / VAE if cfg.vae is None else _vae_folder(cfg.vae)
    places = unfit.Places(cfg, folder, vae_folder)
    weights = unfit.weights_of(kind, places)
    identity = key_of(_hashes(source, [places.of(name) for name in kind.layout], weights, folder, store))
    return kind(
        cfg.name,
        folder,
        vae_folder,
        variants={part: each.variant for part, each in weights.items()},
        device=device,
        dtype=pick_dtype(cfg.precision, device, fp16=kind.family.fp16),
        identity=identity if cfg.quantize is None else key_of({"base": identity, "quantize": cfg.quantize}),
        quantize=cfg.quantize,
    )


def _hashes(
    source: Source, folders: Sequence[Path], weights: Mapping[str, Weights], pipeline: Path, store: Store
) -> dict[str, str]:
    """Hashes of the files that are loaded, by their names: of weights those alone that are read, and not those of
    another variant or format beside them."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if not is_weights(path)]
    files += [path for each in weights.values() for path in each.files]
    found = {
        f"{path.parent.name}/{path.name}": store.file_hash(path)
        for path in files
        if path.suffix in source.suffixes and path.is_file()
    }
    hashes = {name: _SAME_FILES.get(digest, digest) for name, digest in found.items()}
    return hashes | {name: store.file_hash(pipeline / name) for name in source.files if (pipeline / name).is_file()}


def absent(path: str | None, field: str) -> str | None:
    """What is wrong with a checkpoint that is not on this machine and that no hub can have; None: nothing, or none is
    named.

    Args:
        path: of a folder or a file, or owner/name.
        field: that names it.
    """
    if path in (None, "random") or (local := locate(path)).exists():
        return None
    here = local.is_absolute() or path.startswith((".", "~")) or local.suffix in _SINGLE_FILES
    if not here and path.count("/") == 1:
        return None
    return f"{field}={path}: there is no such folder or file, and it is no hub id (owner/name)"


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
    if problem := absent(cfg.path, "model.path"):
        raise ConfigError(problem)
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
    _check_single_file(kind, cfg, file)
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


def _check_single_file(kind: type[Checkpoint], cfg: ModelConfig, file: Path) -> None:
    """Raises:
    ConfigError: what the file's head says it is, where that is no checkpoint of the family.
    """
    wrong = damage(file)
    if wrong is None and file.suffix == ".safetensors":
        names = head(file)
        if any(mark in name for name in names for mark in _LORA_MARKS):
            raise ConfigError(f"model.path={cfg.path}: holds a LoRA; give the checkpoint that it was trained on")
        other = next((family for mark, family in _MARKS.items() if any(name.startswith(mark) for name in names)), None)
        if other is not None and FAMILIES[other] is not kind.family:
            raise ConfigError(
                f"model.path={cfg.path}: not a checkpoint of {kind.family.title}; model.family={other} covers those of "
                f"{FAMILIES[other].title}"
            )
    if wrong is not None:
        raise ConfigError(
            f"model.path={cfg.path}: could not be read as a checkpoint of {kind.family.title} (it {wrong}); give a "
            "whole file"
        )


def _vae_folder(path: str) -> Path:
    local = locate(path)
    if local.is_file():
        raise ConfigError(
            f"model.vae={path}: a single file; give the folder of a VAE as diffusers saves it, with config.json beside "
            "the weights, or its hub id"
        )
    if local.is_dir():
        return _no_pipeline(path, local.absolute())
    from huggingface_hub import snapshot_download

    try:
        # of the root alone: a pipeline would be gigabytes
        patterns = ["config.json", "model_index.json", "diffusion_pytorch_model*"]
        return _no_pipeline(path, Path(snapshot_download(path, allow_patterns=patterns)))
    except ConfigError:
        raise
    except Exception as error:
        reason = hub_switched_off() or type(error).__name__
        raise ConfigError(
            f"model.vae={path}: not a folder here, and the hub did not give it ({reason}); "
            "pass the folder of a downloaded VAE, or null"
        ) from None


def _no_pipeline(path: str, folder: Path) -> Path:
    """The folder of a VAE, unless it is that of a pipeline."""
    if (folder / "model_index.json").exists() and not (folder / "config.json").exists():
        inside = folder / VAE
        remedy = f"model.vae={inside}" if inside.is_dir() else "the folder `vae` of a downloaded one"
        raise ConfigError(f"model.vae={path}: a pipeline, and not a VAE alone; give {remedy}")
    return folder
