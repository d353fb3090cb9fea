"""A LoRA that another trainer wrote, as a file of dbexp: kept in the store, found by its content."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from dbexp.core.environment import hub_switched_off
from dbexp.core.errors import ConfigError, first_line
from dbexp.core.files import locate
from dbexp.core.hashing import file_hash, key_of
from dbexp.core.store import Store
from dbexp.models import LoraFile, Model, files, lora_file
from dbexp.models.foreign_reader import config_beside, read

VERSION = 1
FILE = "lora.safetensors"
_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*){2,}\.safetensors")
"""owner/name/FILE of the hub."""


@dataclass(frozen=True)
class ForeignLora:
    """A LoRA from elsewhere.

    Attributes:
        path: a file of dbexp with the same adapters.
        sha256: of what the user gave: the file, and PEFT's configuration where there is one beside it.
    """

    path: Path
    sha256: str


def open_lora(path: str, model: Model, store: Store, field: str) -> ForeignLora:
    """A LoRA file of any trainer, dbexp among them, read once and then found in the store.

    Args:
        path: a .safetensors file, or owner/name/FILE of the hub.
        model: that it must fit; no weight of it is read.
        field: of the settings that name the file.

    Raises:
        ConfigError: with everything that cannot be read, or does not fit.
    """
    local = find(path, field)
    digest, config = store.file_hash(local), config_beside(local)
    if config is not None:
        digest = key_of({"file": digest, "config": file_hash(config)})
    inputs = {"version": VERSION, "file": digest, "model": model.identity}

    def make(folder: Path) -> None:
        file = read(local, model, field)
        if _is_ours(local, model):  # its images are known by its bytes
            copyfile(local, folder / FILE)
        else:
            lora_file.write(LoraFile(file.weights, file.alphas, {"source": digest}), folder / FILE, model)

    return ForeignLora(store.get("lora", inputs, make) / FILE, digest)


def find(path: str, field: str) -> Path:
    """The file of a path.

    Raises:
        ConfigError: there is none, or it is none that could be a LoRA.
    """
    local = locate(path)
    if not local.exists() and _HUB.fullmatch(path):
        local = _fetched(path, field)
    if not local.is_file():
        what = "is a folder" if local.is_dir() else "there is no such file"
        raise ConfigError(f"{field}={path}: {what}; give a .safetensors file of a LoRA")
    if local.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise ConfigError(
            f"{field}={path}: is no .safetensors file, and files of other kinds can run code when they are read; save "
            "it as .safetensors"
        )
    if (wrong := files.damage(local)) is not None:
        raise ConfigError(f"{field}={path}: {wrong}; give a whole .safetensors file of a LoRA")
    return local


def _fetched(path: str, field: str) -> Path:
    """A file of a repository of the hub."""
    from huggingface_hub import hf_hub_download

    owner, name, file = path.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file))
    except Exception as error:  # the hub client raises half a dozen unrelated classes for "not to be had"
        reason = hub_switched_off() or first_line(error, typed=True)
        raise ConfigError(
            f"{field}={path}: there is no such file, and the hub did not give it ({reason}); give a .safetensors file "
            "of a LoRA"
        ) from None


def _is_ours(path: Path, model: Model) -> bool:
    """Whether dbexp wrote a file, and would read it as it is."""
    try:
        lora_file.read(path, model)
    except ConfigError:
        return False
    return True
