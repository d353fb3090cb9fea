"""What the tests of sampling share: the tiny model, a LoRA that changes its images strongly, a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.train.adapter import save
from tests import builders


@pytest.fixture(scope="session")
def model() -> Model:
    return builders.model()


@pytest.fixture(scope="session")
def lora(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save(path, builders.adapter(model, {"unet": 2}, {"unet": 2.0}, strength=1.0), model, {})
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
