"""What the tests of `dbexp-export` share: a run, and the command on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dbexp.export import command
from tests import run_folders

Export = Callable[..., Path]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without images, whose LoRA changes much."""
    return run_folders.make(tmp_path_factory.mktemp("run"), "lora.rank=4", ranks={"unet": 4, "text_encoder": 2})


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Export:
    """`export("format=kohya")` runs the command; the folder."""

    def call(*words: str) -> Path:
        given = words if any(word.startswith("run=") for word in words) else (f"run={run}", *words)
        command.main([*given, f"folder={tmp_path / 'out'}", "check_steps=2"])
        return tmp_path / "out"

    return call
