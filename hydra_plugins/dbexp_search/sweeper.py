"""Registers the sweeper. Every Hydra program of the environment imports this file, so it imports little.

The options are files: conf/hydra/sweeper/optuna.yaml and its samplers. Hydra finds these before what plugins register,
so within dbexp the name `optuna` is ours even where Hydra's plugin of that name is installed; in other programs it is
that plugin's.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.dbexp_search._settings import SearchSweeperConf


class SearchSweeper(Sweeper):
    """Asks Optuna for batches of trials, has them run, tells it their objectives.

    Args:
        settings: fields of `SearchSweeperConf`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = SearchSweeperConf(**settings)
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what jobs are made of.

        Raises:
            ConfigError: Optuna is not installed.
        """
        if importlib.util.find_spec("optuna") is None:
            from dbexp.core.errors import ConfigError, needs

            raise ConfigError(
                f"hydra/sweeper={config.hydra.runtime.choices['hydra/sweeper']}: {needs('optuna', 'optuna')}"
            )
        self.config, self.hydra_context = config, hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Search, over what the command line and `params` say.

        Raises:
            ConfigError: the settings are wrong, or the study is another experiment's.
        """
        from hydra_plugins.dbexp_search import _search

        assert self.config is not None and self.hydra_context is not None and self.launcher is not None
        _search.search(self.settings, self.config, self.hydra_context.config_loader, self.launcher, arguments)


ConfigStore.instance().store(group="hydra/sweeper", name="dbexp_search", node=SearchSweeperConf, provider="dbexp")
