"""Checkpoints of every family that a test may spoil."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from dbexp.config.families import FAMILIES
from dbexp.config.schema import ModelConfig
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import (
    Model,
    random_flux,
    random_flux2,
    random_flux2_klein,
    random_krea2,
    random_qwen_image,
    random_sd3,
    random_sdxl,
    random_z_image,
)
from tests import builders

BUILD: dict[str, Callable[[Path], Path]] = {
    "sd": lambda folder: Path(shutil.copytree(builders.checkpoint(), folder)),
    "sdxl": random_sdxl.build_random,
    "flux2_klein": random_flux2_klein.build_random,
    "z_image": random_z_image.build_random,
    "krea2": random_krea2.build_random,
    "qwen_image": random_qwen_image.build_random,
    "flux2": random_flux2.build_random,
    "flux": random_flux.build_random,
    "sd3": random_sd3.build_random,
}
ENCODERS = {name: family.encoders for name, family in FAMILIES.items()}
PARTS = [(name, part) for name, family in FAMILIES.items() for part in ("vae", family.denoiser, *family.encoders)]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 123\n"


def original(family: str) -> Path:
    folder = builders.scratch() / f"unfit-{family}"
    return folder if folder.exists() else BUILD[family](folder)


class Checkpoints:
    """Copies that a test may spoil, opened in one store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, Store(folder / "store")

    def copy(self, family: str) -> Path:
        return Path(shutil.copytree(original(family), self.folder / family, dirs_exist_ok=True))

    def open(self, family: str, path: Path | None = None, **settings: Any) -> Model:
        path = path or self.folder / family
        load = importlib.import_module(FAMILIES[family].module).load
        model: Model = load(
            ModelConfig(name="x", family=family, path=str(path), device="cpu", precision="fp32", **settings), self.store
        )
        return model

    def problems(self, family: str, path: Path | None = None, **settings: Any) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.open(family, path, **settings)
        # nothing was made, but for what is known of files
        assert {entry.name for entry in self.store.root.glob("*")} <= {"hashes"}
        return list(caught.value.problems)


def weights(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def as_variant(path: Path, name: str) -> Path:
    """The same weights in half precision, under the name of a variant."""
    other = path.with_name(f"{path.stem}.{name}{path.suffix}")
    tensors = safetensors.torch.load_file(path)
    halves = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    safetensors.torch.save_file(halves, other, metadata={"format": "pt"})
    return other


def sharded(path: Path) -> Path:
    """The same weights in two files with an index, which is returned."""
    tensors = safetensors.torch.load_file(path)
    names, count = sorted(tensors), len(tensors) // 2
    placed: dict[str, str] = {}
    for number, group in enumerate((names[:count], names[count:]), start=1):
        shard = path.with_name(f"{path.stem}-0000{number}-of-00002.safetensors")
        safetensors.torch.save_file({name: tensors[name] for name in group}, shard, metadata={"format": "pt"})
        placed |= dict.fromkeys(group, shard.name)
    path.unlink()
    index = path.with_name(f"{path.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return index


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def pointer(path: Path) -> None:
    path.write_bytes(POINTER)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "blobs" / "gone")
