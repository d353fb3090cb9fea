"""What all tests share: no network, one thread, a cache of their own, and a short way to compose a config."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

# before any library reads them: hub access would hang where there is no network, and threads would fight over two cores
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does, see dbexp.pipeline.command
_CACHE = tempfile.TemporaryDirectory(prefix="dbexp-tests-", ignore_cleanup_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE.name

import pytest  # noqa: E402  # and those below: after the environment is set
from hydra import compose, initialize_config_dir  # noqa: E402
from hydra.core.global_hydra import GlobalHydra  # noqa: E402
from omegaconf import DictConfig, OmegaConf  # noqa: E402

from dbexp.config import check, groups, help  # noqa: E402
from dbexp.config.schema import Config  # noqa: E402

_composed: dict[tuple[Any, ...], DictConfig] = {}


@pytest.fixture
def composed() -> Iterator[Callable[..., DictConfig]]:
    """`composed("lora.rank=4", ...)` is what Hydra makes of these overrides, read-only and made once per session."""

    def cached(*overrides: str, return_hydra_config: bool = False) -> DictConfig:
        key = (*overrides, return_hydra_config)
        if key not in _composed:
            cfg = compose("config", overrides=list(overrides), return_hydra_config=return_hydra_config)
            OmegaConf.set_readonly(cfg, True)
            _composed[key] = cfg
        return _composed[key]

    help.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(groups.conf_dir()), version_base="1.3", job_name="dbexp"):
        yield cached


@pytest.fixture
def checked(composed: Callable[..., DictConfig]) -> Callable[..., Config]:
    """`checked("lora.rank=4", ...)` is the checked config of these overrides."""
    return lambda *overrides: check.check(composed(*overrides))
