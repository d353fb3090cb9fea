"""What a run names beside its base model: LoRAs of other trainers, and a second checkpoint that draws."""

from __future__ import annotations

from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError, Problems, count
from dbexp.core.store import Store
from dbexp.models import Model, foreign_lora, lora_file
from dbexp.models.foreign_lora import ForeignLora
from dbexp.train import start
from dbexp.train.data import ranks_of


def problems(config: Config) -> list[str]:
    """What is wrong with the files, as far as can be known without a model."""
    messages: list[str] = []
    for field, path in (
        ("lora.path", config.lora.path),
        ("lora.init", config.lora.init),
        ("model.training_lora", config.model.training_lora),
    ):
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
    return _open(config.lora.path, model, store, "lora.path")


def beginning(config: Config, model: Model, store: Store) -> ForeignLora | None:
    """The LoRA that training starts from; None: from fresh weights.

    Args:
        model: that is trained on.
    """
    return _open(config.lora.init, model, store, "lora.init")


def of_base(config: Config, model: Model, store: Store) -> ForeignLora | None:
    """The LoRA that the base has while it is trained on; None: none."""
    return _open(config.model.training_lora, model, store, "model.training_lora")


def _open(path: str | None, model: Model, store: Store, field: str) -> ForeignLora | None:
    return None if path is None else foreign_lora.open_lora(path, model, store, field)


def require_fit(config: Config, model: Model, draws: Model, store: Store) -> None:
    """Hold what a run names against its base model, before anything is computed and without reading a weight.

    Args:
        model: that is trained on.
        draws: that draws.

    Raises:
        ConfigError: with everything that does not fit.
    """
    found = Problems()
    if config.lora.path is None:
        found.messages += _misfit(config, model, draws)
    for check in (_check_start, _check_base):
        try:
            found.messages += check(config, model, store)
        except ConfigError as error:
            found.messages += error.problems
    try:
        in_place(config, draws, store)
    except ConfigError as error:
        found.messages += error.problems
    found.raise_if_any()


def _check_start(config: Config, model: Model, store: Store) -> list[str]:
    lora = beginning(config, model, store)
    return [] if lora is None else start.problems(config.lora, lora, model)


def _check_base(config: Config, model: Model, store: Store) -> list[str]:
    lora = of_base(config, model, store)
    parts = () if lora is None else lora_file.read(lora.path, model).alphas
    denoiser = model.family.denoiser
    return [
        f"model.training_lora={config.model.training_lora}: adapts the {part}; give a LoRA of the {denoiser} alone"
        for part in parts
        if part != denoiser
    ]


def _misfit(config: Config, model: Model, draws: Model) -> list[str]:
    """Where a LoRA that one checkpoint trains does not fit the one that draws with it."""
    if draws.identity == model.identity:
        return []
    for part in ranks_of(config.lora, model.family):
        layers, others = model.layers(part), draws.layers(part)
        sites = model.sites(part, config.lora.sites)
        wrong = [site for site in sites if others.get(site) != layers[site]]
        if wrong:
            there = others.get(wrong[0])
            what = "is not there" if there is None else f"is {there[0]} x {there[1]} there"
            out, width = layers[wrong[0]]
            return [
                f"model.sample_path={config.model.sample_path}: no LoRA of model.path={config.model.path} fits it: "
                f"{part}.{wrong[0]}, {out} x {width}, {what}, and so with {count(len(wrong), 'layer')} of "
                f"{len(sites)}; give a checkpoint of the same architecture"
            ]
    return []
