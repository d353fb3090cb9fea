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
    if "load_sweep_config" in vars(loader):
        return
    compose, kept = loader.load_sweep_config, dict[tuple[str, ...], DictConfig]()

    def load_sweep_config(master_config: DictConfig, sweep_overrides: list[str], *others: Any) -> DictConfig:
        key = tuple(sweep_overrides)
        if key in kept:
            return kept.pop(key)
        composed = compose(master_config, sweep_overrides, *others)
        kept[key] = copy.deepcopy(composed)  # whoever gets it may write into it
        return composed

    loader.load_sweep_config = load_sweep_config  # type: ignore[method-assign]
