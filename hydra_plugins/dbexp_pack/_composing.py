"""Hydra composes a job of a sweep twice: a sweeper to see whether it can be composed, the launcher to run it.

The launcher keeps what the sweeper composed. Hydra has no place for that: a method of the sweep's own loader is
replaced, as was checked with hydra-core 1.3.8.
"""

from __future__ import annotations

import copy
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig


def remember(loader: ConfigLoader) -> None:
    """Make a config loader keep what it composed for a job until that is asked for again.

    Args:
        loader: of the sweep.
    """
    if "load_sweep_config" not in vars(loader):
        loader.load_sweep_config = _ComposeOnce(loader)  # type: ignore[method-assign]  # see above


class _ComposeOnce:
    """Stands for a loader's method. No function inside a function: loaders are sent to other processes."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader, self._cache = loader, dict[tuple[str, ...], DictConfig]()

    def __call__(self, master_config: DictConfig, sweep_overrides: list[str], *more: Any) -> DictConfig:
        key = tuple(sweep_overrides)
        if key in self._cache:
            return self._cache.pop(key)
        composed = type(self._loader).load_sweep_config(self._loader, master_config, sweep_overrides, *more)
        self._cache[key] = copy.deepcopy(composed)  # whoever gets it may write into it
        return composed
