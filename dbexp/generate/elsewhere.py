"""LoRAs of other trainers as columns of the grid: a file, drawn on a run's base model or on one that is named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dbexp.config import groups
from dbexp.config.compose import compose
from dbexp.config.schema import Config, DatasetConfig
from dbexp.core.errors import ConfigError, Problems
from dbexp.core.store import Store
from dbexp.generate.settings import GenerateConfig
from dbexp.models import foreign_lora, load
from dbexp.runs.record import TrainedRun

if TYPE_CHECKING:
    from dbexp.generate.grid import GridColumn


def runs(settings: GenerateConfig, others: Sequence[TrainedRun]) -> list[TrainedRun]:
    """The files that are asked for, each as if a run had trained it.

    Args:
        others: the runs that are asked for; the first tells base model, subject and sampling.

    Raises:
        ConfigError: with every file that is none, and what is wrong with the base model.
    """
    problems, files = Problems(), list[Path]()
    for path in settings.lora:
        try:
            files.append(foreign_lora.find(path, "lora"))
        except ConfigError as error:
            problems.messages += error.problems
    config = None
    try:
        if settings.lora:
            config = others[0].config if others else _alone(settings)
    except ConfigError as error:
        problems.messages += error.problems
    problems.raise_if_any()
    assert config is not None or not files
    return [
        TrainedRun(file.parent, file.stem, config, file, overrides=(f"lora={file.name}",), elsewhere=True)
        for file in files
        if config is not None
    ]


def _alone(settings: GenerateConfig) -> Config:
    """Base model and sampling where there is no run: those of an option of dbexp."""
    assert settings.model is not None  # which `check` requires
    option = settings.model if settings.family is None else _option_of(settings.family)
    known = [name for name in groups.options([groups.conf_dir()])["model"] if name != "custom"]
    if option not in known and settings.family is None:
        raise ConfigError(
            f"model={settings.model}: is no option of dbexp ({', '.join(known)}); for another checkpoint say "
            "of which family it is, family=NAME"
        )
    changes = [] if option != "custom" else [f"model.name={settings.family}", "model.path=none"]
    composed = compose([f"model={option}", *changes])
    if settings.family is None:
        return replace(composed, dataset=_subject(settings, composed.model.name))
    named = replace(composed.model, name=Path(settings.model).stem, family=settings.family, label=None)
    return replace(composed, model=replace(named, path=settings.model), dataset=_subject(settings, named.name))


def _option_of(family: str) -> str:
    """The first option of dbexp with a checkpoint of a family that learnt from photographs."""
    names = groups.options([groups.conf_dir()])["model"]
    of = {name: groups.option("model", name) for name in names}
    known = [name for name, values in of.items() if _value(values, "family") == family and not _value(values, "label")]
    return next((name for name in known if name != "custom"), "custom")


def _value(values: dict[str, object], field: str) -> object:
    return values.get(f"model.{field}", values.get(field))


def _subject(settings: GenerateConfig, model: str) -> DatasetConfig:
    """Nobody but the user knows what a file has learnt."""
    return DatasetConfig(
        name=model, token=settings.token or "", class_noun=settings.class_noun or "", live=True, prompt="{token}"
    )


def open_all(columns: Sequence[GridColumn], store: Store) -> dict[tuple[Path, str], Path]:
    """(file, base model) of columns with a LoRA from elsewhere -> a file of dbexp with the same adapters.

    Raises:
        ConfigError: with everything that cannot be read, or does not fit.
    """
    problems, opened = Problems(), dict[tuple[Path, str], Path]()
    for column in (column for column in columns if column.run.elsewhere):
        model = load(column.model, store)
        try:
            lora = foreign_lora.open_lora(str(column.run.lora), model, store, "lora")
            opened[column.run.lora, model.identity] = lora.path
        except ConfigError as error:
            problems.messages += error.problems
    problems.raise_if_any()
    return opened
