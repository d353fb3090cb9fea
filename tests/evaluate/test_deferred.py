"""Backbones that are loaded when first used: what is noted of them, and when it no longer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dbexp.config.schema import ClipConfig, DinoConfig, LpipsConfig
from dbexp.core import provenance
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.evaluate.backbones import deferred
from dbexp.evaluate.backbones.deferred import Deferred, open_backbone

CPU = torch.device("cpu")


@dataclass
class Loader:
    """Stands for the libraries: a network is its file's text; remembers what was loaded."""

    loaded: list[Any] = field(default_factory=list)

    def __call__(self, cfg: Any, device: torch.device) -> Any:
        self.loaded.append(cfg)
        return Network(Path(cfg.weights).read_text())


@dataclass
class Network:
    text: str
    transform: str = "1"
    random: bool = False
    context_length: int = 77

    @property
    def id(self) -> str:
        return f"network/{self.text}"

    def embed_images(self, paths: Sequence[Path], batch_size: int = 32) -> Tensor:
        return torch.full((len(paths), 2), float(batch_size))


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    fake = Loader()
    monkeypatch.setattr(deferred, "_load", fake)
    return fake


@pytest.fixture
def cfg(tmp_path: Path) -> DinoConfig:
    (tmp_path / "weights.pt").write_text("one")
    return DinoConfig(weights=str(tmp_path / "weights.pt"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_the_second_time_it_is_known_and_loaded_when_it_computes(loader: Loader, cfg: DinoConfig, store: Store) -> None:
    first = open_backbone(cfg, CPU, store)
    second = open_backbone(cfg, CPU, store)
    assert isinstance(first, Network) and isinstance(second, Deferred)
    for name in ("id", "transform", "random", "context_length"):
        assert getattr(second, name) == getattr(first, name)
    assert len(loader.loaded) == 1
    assert second.embed_images([Path("a"), Path("b")], 3).tolist() == [[3, 3], [3, 3]]
    second.embed_images([Path("a")])
    assert len(loader.loaded) == 2


def test_without_a_store_it_is_loaded_at_once(loader: Loader, cfg: DinoConfig) -> None:
    assert all(isinstance(open_backbone(cfg, CPU, None), Network) for _ in range(2))


@pytest.mark.parametrize("change", ["file", "setting", "library", "code"])
def test_a_note_is_of_these_files_settings_libraries_and_code(
    loader: Loader, cfg: DinoConfig, store: Store, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    open_backbone(cfg, CPU, store)
    if change == "file":
        Path(str(cfg.weights)).write_text("another")
    elif change == "setting":
        cfg = replace(cfg, crop=cfg.crop - 1)
    elif change == "library":
        monkeypatch.setattr(provenance, "package_versions", lambda: {"timm": "0"})
    else:
        monkeypatch.setattr(deferred, "_CODE", "other code")
    result = open_backbone(cfg, CPU, store)
    assert isinstance(result, Network)
    assert result.text == ("another" if change == "file" else "one")


def test_weights_that_change_between_note_and_use_are_refused(loader: Loader, cfg: DinoConfig, store: Store) -> None:
    open_backbone(cfg, CPU, store)
    noted = open_backbone(cfg, CPU, store)
    Path(str(cfg.weights)).write_text("another")
    with pytest.raises(ConfigError, match=r"network/one changed while this ran"):
        noted.embed_images([Path("a")])


@pytest.mark.parametrize(
    ("cfg", "files"),
    [
        (DinoConfig(), None),
        (DinoConfig(weights="random"), []),
        (DinoConfig(weights="{folder}/a"), ["a"]),
        (DinoConfig(weights="{folder}/absent"), None),
        (ClipConfig(), None),
        (ClipConfig(name="ViT-B-32-quickgelu", weights="{folder}/a"), ["a"]),
        (ClipConfig(name="mine", weights="random"), []),
        (ClipConfig(name="local-dir:{folder}", weights=None), ["a", "b"]),
        (ClipConfig(name="hf-hub:some/model", weights=None), None),
        (LpipsConfig(), None),
        (LpipsConfig(trunk="random"), []),
        (LpipsConfig(trunk="{folder}/a", heads="{folder}/b"), ["a", "b"]),
    ],
)
def test_only_files_of_this_machine_have_an_identity_before_they_are_loaded(
    tmp_path: Path, cfg: Any, files: list[str] | None
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    filled = {
        name: value.format(folder=tmp_path)
        for name, value in vars(cfg).items()
        if isinstance(value, str) and "{" in value
    }
    result = deferred._files(replace(cfg, **filled))
    assert files == (None if result is None else [path.name for path in result])
