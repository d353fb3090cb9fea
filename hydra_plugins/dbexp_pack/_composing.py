"""Hydra composes a job of a sweep twice: to see if it can be composed, and to run it. With this it does so once."""

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
        loader.load_sweep_config = _Once(loader)  # type: ignore[method-assign]


class _Once:
    """Stands for a loader's method. No function inside a function: loaders are sent to other processes."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader, self._kept = loader, dict[tuple[str, ...], DictConfig]()

    def __call__(self, master_config: DictConfig, sweep_overrides: list[str], *others: Any) -> DictConfig:
        key = tuple(sweep_overrides)
        if key in self._kept:
            return self._kept.pop(key)
        composed = type(self._loader).load_sweep_config(self._loader, master_config, sweep_overrides, *others)
        self._kept[key] = copy.deepcopy(composed)  # whoever gets it may write into it
        return composed
