"""What tests of every family share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.checkpoints import Checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path)
