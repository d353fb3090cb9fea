"""Jobs of a sweep are composed from what they share.

Hydra composes each job from the files, twice: a sweeper to see whether it can be composed, the launcher to run it. Jobs
that choose the same options differ in values alone, and values are set last. So the options are composed once, and a
job is a copy with its values set. Hydra has no place for that: a method of the sweep's own loader is replaced, as was
checked with hydra-core 1.3.8.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import get_overrides_dirname  # private: checked with hydra-core 1.3.8
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_Words = tuple[str, ...]


def remember(loader: ConfigLoader) -> None:
    """Make a config loader compose the options of a sweep's jobs once.

    Args:
        loader: of the sweep.
    """
    if "load_sweep_config" not in vars(loader):
        loader.load_sweep_config = _SharedOptions(loader)  # type: ignore[method-assign]  # see above


class _SharedOptions:
    """Stands for a loader's method. No function inside a function: loaders are sent to other processes."""

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        self._composed: dict[_Words, bytes] = {}
        """What the options of a job are known by -> the config that they give, pickled: a copy of it takes a sixth of
        the time of `deepcopy`."""
        self._values: dict[_Words, frozenset[str]] = {}
        """Names in the overrides of a job -> those of them that set values."""

    def __getstate__(self) -> dict[str, Any]:
        return {"_loader": self._loader, "_composed": {}, "_values": {}}

    def __call__(self, master_config: DictConfig, sweep_overrides: list[str], *more: Any) -> DictConfig:
        if not more:
            # what is wrong Hydra words, and it knows what else an override may be
            with contextlib.suppress(HydraException, OmegaConfBaseException, ValueError):
                return self._compose(master_config, sweep_overrides)
        return self._by_hydra(master_config, sweep_overrides, *more)

    def _by_hydra(self, master: DictConfig, words: Sequence[str], *more: Any) -> DictConfig:
        return type(self._loader).load_sweep_config(self._loader, master, list(words), *more)

    def _compose(self, master: DictConfig, words: Sequence[str]) -> DictConfig:
        """The config of a job, as Hydra makes it.

        Raises:
            HydraException, OmegaConfBaseException, ValueError: where something is wrong, or takes Hydra itself.
        """
        overrides = OverridesParser.create().parse_overrides(list(words))
        if any(override.is_hydra_override() or override.is_sweep_override() for override in overrides):
            return self._by_hydra(master, words)
        names = self._names_of_values(master, overrides)
        values = [override for override in overrides if override.key_or_group in names]
        if any(override.type is not OverrideType.CHANGE for override in values):  # +name, ++name, ~name
            return self._by_hydra(master, words)
        cfg = self._options(master, [str(one.input_line) for one in overrides if one.key_or_group not in names])
        for override in values:
            OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True)
        cfg.hydra.overrides.task = list(words)
        form = cfg.hydra.job.config.override_dirname
        cfg.hydra.job.override_dirname = get_overrides_dirname(
            overrides, kv_sep=form.kv_sep, item_sep=form.item_sep, exclude_keys=form.exclude_keys
        )
        OmegaConf.copy_cache(from_config=master, to_config=cfg)  # the sweep's `now` is that of its jobs
        return cfg

    def _names_of_values(self, master: DictConfig, overrides: Sequence[Override]) -> frozenset[str]:
        """Names of the overrides that set values and choose no options."""
        key = tuple(f"{one.type} {one.get_key_element()} {isinstance(one.value(), dict)}" for one in overrides)
        if key not in self._values:
            lines = [str(override.input_line) for override in overrides]
            listed = self._loader.compute_defaults_list(master.hydra.job.config_name, lines, RunMode.RUN)
            self._values[key] = frozenset(override.key_or_group for override in listed.config_overrides)
        return self._values[key]

    def _options(self, master: DictConfig, words: Sequence[str]) -> DictConfig:
        """A new copy of what options alone give."""
        key = (str(Path.cwd()), str(master.hydra.job.config_name), *master.hydra.overrides.hydra, "", *words)
        if key not in self._composed:
            made = self._by_hydra(master, words)
            try:
                self._composed[key] = pickle.dumps(made)
            except (pickle.PicklingError, AttributeError, TypeError):
                return made  # in a process of joblib, say, which has the class of a launcher's settings twice
        cfg: DictConfig = pickle.loads(self._composed[key])
        return cfg
