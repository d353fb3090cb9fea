"""Backbones that are loaded when something must be computed, and until then are known by what was noted of them.

Importing their libraries and reading their weights takes seconds. A run whose pictures were all scored before needs
neither, but it must know under which identity they were. So the first time a backbone is loaded, what it is called is
noted in the store, under a key of all that its identity depends on: settings, the bytes of its files, the versions of
the libraries, and this package's own code. Weights that a library finds by a name, on the hub say, may become others
under the same name: nothing is noted of them, and they are loaded at once.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dbexp.config.fields import keyed
from dbexp.config.schema import ClipConfig, DinoConfig, LpipsConfig
from dbexp.core import provenance
from dbexp.core.errors import ConfigError
from dbexp.core.files import locate, write_atomic
from dbexp.core.store import Store
from dbexp.evaluate.backbones.base import RANDOM

Settings = DinoConfig | ClipConfig | LpipsConfig

_CLASSES = {DinoConfig: ("dino", "Dino"), ClipConfig: ("clip", "Clip"), LpipsConfig: ("lpips", "Lpips")}
"""Settings of a backbone -> its module beside this one, and its class."""
_LOCAL, _HUB = "local-dir:", "hf-hub:"
_FILE = "backbone.json"
_CODE = provenance.code_hash("evaluate", "core/images.py", "core/colour.py", "core/files.py")


@dataclass(frozen=True)
class Noted:
    """What a backbone tells about itself; see `dbexp.evaluate.backbones.base`."""

    id: str
    transform: str
    random: bool
    context_length: int
    """0 for one that reads no texts."""


def open_backbone(cfg: Settings, device: torch.device, store: Store | None) -> Any:
    """The backbone of a config, loaded or yet to be.

    Args:
        cfg: which; its class says of which kind.
        device: where it computes.
        store: where notes are kept; None: it is loaded at once.

    Raises:
        ConfigError: its weights or architecture cannot be had.
    """
    inputs = _inputs(cfg, store) if store else None
    if store is None or inputs is None:
        return _load(cfg, device)
    loaded: list[Any] = []

    def make(folder: Path) -> None:
        backbone = _load(cfg, device)
        loaded.append(backbone)
        noted = Noted(backbone.id, backbone.transform, backbone.random, getattr(backbone, "context_length", 0))
        write_atomic(folder / _FILE, json.dumps(asdict(noted), indent=1))

    entry = store.get("backbone", inputs, make)
    if loaded:
        return loaded[0]
    return Deferred(Noted(**json.loads((entry / _FILE).read_text())), lambda: _load(cfg, device))


class Deferred:
    """A backbone of any kind, loaded by the first call that computes.

    Args:
        noted: when it was loaded before.
        load: loads it.
    """

    def __init__(self, noted: Noted, load: Callable[[], Any]) -> None:
        self.id, self.transform, self.random = noted.id, noted.transform, noted.random
        self.context_length = noted.context_length
        self._load = load
        self._loaded: Any = None

    def leave(self) -> None:
        """Free the device, where anything of it is there."""
        if self._loaded is not None:
            self._loaded.leave()

    def __getattr__(self, name: str) -> Any:
        """What was not noted, which is all that computes, is the loaded backbone's."""
        if name.startswith("_"):  # of `copy` or `pickle`, before there is anything to load
            raise AttributeError(name)
        if self._loaded is None:
            self._loaded = self._load()
            if self._loaded.id != self.id:  # its files were other ones a moment ago
                raise ConfigError(f"the weights of {self.id} changed while this ran; give the same command again")
        return getattr(self._loaded, name)


def _load(cfg: Settings, device: torch.device) -> Any:
    module, name = _CLASSES[type(cfg)]
    return getattr(importlib.import_module(f"dbexp.evaluate.backbones.{module}"), name)(cfg, device)


def _inputs(cfg: Settings, store: Store) -> dict[str, Any] | None:
    """What the identity of a backbone depends on; None where that cannot be said without loading it."""
    files = _files(cfg)
    if files is None:
        return None
    return {
        "version": 1,
        "kind": _CLASSES[type(cfg)][0],
        "settings": json.loads(json.dumps(keyed(cfg), default=str)),
        "files": [[path.name, store.file_hash(path)] for path in files],
        "packages": provenance.package_versions(),
        "code": _CODE,
    }


def _files(cfg: Settings) -> list[Path] | None:
    """The files of a backbone's weights and architecture; None if some are not on this machine under their own path."""
    names: list[str | None]
    if isinstance(cfg, DinoConfig):
        names = [cfg.weights]
    elif isinstance(cfg, LpipsConfig):
        names = [cfg.trunk, cfg.heads or RANDOM]  # without a file, the heads are those of the lpips package
    elif cfg.name.startswith(_HUB) or (cfg.weights is None and not cfg.name.startswith(_LOCAL)):
        return None
    else:
        names = [cfg.name.removeprefix(_LOCAL)] if cfg.name.startswith(_LOCAL) else []
        names += [cfg.weights or RANDOM]
    files: list[Path] = []
    for name in names:
        if name == RANDOM:
            continue
        path = None if name is None else locate(name)
        if path is None or not path.exists():  # whoever loads it says what is wrong
            return None
        files += sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return files
