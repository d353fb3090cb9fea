"""Configs from overrides, without a command: what `dbexp` itself would compose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from dbexp.config import check, groups, help
from dbexp.config.explain import explain, parameters
from dbexp.config.overrides import beyond_hydra, groups_among
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError


def compose(overrides: Sequence[str], options: Path | None = None) -> Config:
    """The checked config of some overrides.

    Args:
        overrides: as on the command line, one a string.
        options: a folder of options of the user's own.

    Raises:
        ConfigError: with every problem.
    """
    help.register()
    words = [str(word) for word in overrides]
    search_path = [] if options is None else [f"hydra.searchpath=['file://{options}']"]
    known = groups_among(groups.options([groups.conf_dir()]), parameters())
    if problems := beyond_hydra(words, known):
        raise ConfigError(problems)
    try:
        parsed = OverridesParser.create().parse_overrides(words)
        sweeps = [word for word, override in zip(words, parsed, strict=True) if override.is_sweep_override()]
        if sweeps:
            why = "several values make a sweep, and compose makes one config: compose each value by itself"
            raise ConfigError([f"{word}: {why}; or run `dbexp -m {word}`" for word in sweeps])
        with initialize_config_dir(str(groups.conf_dir()), version_base="1.3", job_name="dbexp"):
            return check.check(hydra_compose("config", overrides=[*words, *search_path]))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from None
