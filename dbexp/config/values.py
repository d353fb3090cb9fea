"""A config as plain values, and plain values as a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dbexp.config.schema import Config
from dbexp.config.typed import build
from dbexp.core.errors import ConfigError, Problems, first_line


def plain(value: Any) -> Any:
    """A dataclass or OmegaConf node as dicts, lists and scalars, ready for JSON."""
    if isinstance(value, (DictConfig, ListConfig)):
        return OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    return _without_tuples(asdict(value))


def _without_tuples(value: Any) -> Any:
    """The same with lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _without_tuples(item) for key, item in value.items()}
    return [_without_tuples(item) for item in value] if isinstance(value, (list, tuple)) else value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots as in an override; lists and empty dicts are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def objectives(value: object) -> list[str]:
    """What an objective names, as a user may write it: dino, dino+clip_t, a list, or trade-offs such as 0.5*dino-pres.

    A plus sign is between two objectives, unless there is a `*` or a minus sign, which only a trade-off has.
    """
    if value is None:
        return []
    words = [str(word) for word in value] if isinstance(value, (list, ListConfig)) else str(value).split(",")
    if not isinstance(value, (list, ListConfig)):
        words = [each for word in words for each in ([word] if {"*", "-"} & set(word) else word.split("+"))]
    return ["".join(word.split()) for word in words]


_UNKNOWN = "; `dbexp --help` lists all"


def structured(settings: object, *, literal: bool = False, missing: Problems | None = None) -> Config:
    """Settings as dataclasses, with names and types checked, but none of the rules: those are for a run to come.

    Args:
        settings: nested dicts, or OmegaConf's, as a config or a record has them.
        literal: nested dicts in which no interpolation is resolved; for what may be a stranger's.
        missing: gets a message for each value that is missing, in whose place something else then stands.

    Raises:
        ConfigError: with every unknown name, value of a wrong type, and value that is missing; or an interpolation of
            nothing. A value that is missing is no error to whoever gives `missing`.
    """
    values = settings if literal else _resolved(settings)
    if not isinstance(values, dict):
        raise ConfigError(f"{values!r:.40}: is no group of parameters")
    if isinstance(values.get("objective", []), str | None):
        values = {**values, "objective": objectives(values["objective"])}
    problems = Problems()
    config = build(Config, values, problems, unknown=_UNKNOWN, missing=missing)
    problems.messages.sort(key=lambda message: not message.endswith(_UNKNOWN))  # of another version it says most
    problems.raise_if_any()
    assert config is not None
    return config


def _resolved(settings: object) -> object:
    try:
        node = OmegaConf.create(settings) if isinstance(settings, dict) else settings
        return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}{first_line(error)}") from None
    except RecursionError:
        raise ConfigError("an interpolation ${...} leads back to itself") from None
