"""A config as plain values, and plain values as a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError, first_line


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


_START, _MARK = "${", "$\0{"
"""Of an interpolation, and what stands for it where a text is literal: OmegaConf sees nothing in that."""


def structured(settings: object, *, literal: bool = False) -> Config:
    """Settings as dataclasses, with names and types checked, but none of the rules: those are for a run to come.

    Args:
        settings: nested dicts, or OmegaConf's, as a config or a record has them.
        literal: nested dicts in which no interpolation is resolved; for what may be a stranger's.

    Raises:
        ConfigError: an unknown name, a value of a wrong type, an interpolation of nothing, or values that are missing.
    """
    try:
        values = _replaced(settings, _START, _MARK) if literal else _resolved(settings)
        if not isinstance(values, dict):
            raise ConfigError(f"{values!r:.40}: is no group of parameters")
        if "objective" in values:
            values["objective"] = objectives(values["objective"])
        merged = OmegaConf.merge(_schema(), OmegaConf.create(values))
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError([f"{path}: has no value; give one, {path}=..." for path in missing])
        config = OmegaConf.to_object(merged)
    except (ConfigKeyError, ConfigAttributeError) as error:
        raise ConfigError(f"{error.full_key}: there is no such parameter; `dbexp --help` lists all") from None
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{where}{first_line(error)}".replace(_MARK, _START)) from None
    if literal:
        config = _replaced(config, _MARK, _START)
    assert isinstance(config, Config)
    return config


def _resolved(settings: object) -> object:
    node = OmegaConf.create(settings) if isinstance(settings, dict) else settings
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _replaced(value: Any, old: str, new: str) -> Any:
    """The same with a text replaced in every text, all the way down dicts, lists and dataclasses."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, old, new) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{field.name: _replaced(getattr(value, field.name), old, new) for field in fields(value)}
        )
    return value


@cache
def _schema() -> DictConfig:
    """The dataclasses as OmegaConf has them, made once: a sweep checks every job twice."""
    schema: DictConfig = OmegaConf.structured(Config)
    return schema
