"""LoRAs of other trainers that a run names: drawn in place of training one, or what training starts from."""

from __future__ import annotations

from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.models import Model, foreign_lora
from dbexp.models.foreign_lora import ForeignLora
from dbexp.train import start


def problems(config: Config) -> list[str]:
    """What is wrong with the files, as far as can be known without a model."""
    messages: list[str] = []
    for field, path in (("lora.path", config.lora.path), ("lora.init", config.lora.init)):
        try:
            if path is not None:
                foreign_lora.find(path, field)
        except ConfigError as error:
            messages += error.problems
    return messages


def in_place(config: Config, model: Model, store: Store) -> ForeignLora | None:
    """The LoRA that the run draws with, and does not train; None: it trains one.

    Args:
        model: that it is drawn with.
    """
    path = config.lora.path
    return None if path is None else foreign_lora.open_lora(path, model, store, "lora.path")


def beginning(config: Config, model: Model, store: Store) -> ForeignLora | None:
    """The LoRA that training starts from; None: from fresh weights.

    Args:
        model: that is trained on.
    """
    path = config.lora.init
    return None if path is None else foreign_lora.open_lora(path, model, store, "lora.init")


def require_fit(config: Config, model: Model, store: Store) -> None:
    """Raises:
    ConfigError: with everything that does not fit the model, or cannot be trained further.
    """
    in_place(config, model, store)
    lora = beginning(config, model, store)
    if lora is not None and (messages := start.problems(config.lora, lora, model)):
        raise ConfigError(messages)
