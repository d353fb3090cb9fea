"""The rules of a config: those of each field, and those across fields, checked all at once before anything is computed.

The parameters themselves, with their documentation, bounds and choices, are the dataclasses of `dbexp.config.schema`;
YAML files in `conf/` hold the options of each group and are checked against these classes by Hydra.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from dbexp.config import fields
from dbexp.config.families import FAMILIES, SAMPLERS, SITES
from dbexp.config.schema import Config, DatasetConfig
from dbexp.core.errors import ConfigError, Problems, first_line

# optional optimisers: the library each needs, and the extra of this package that installs it
OPTIMIZER_LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


@dataclass
class _Typed(Config):
    """A config as a user types it: an objective may be a list or words with + between them."""

    objective: Any = "dino"


def register() -> None:
    """Tell Hydra about the schema; `conf/config.yaml` builds on it by the name `schema`."""
    ConfigStore.instance().store(name="schema", node=_Typed)


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: neither exists, so the installation is damaged.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"no conf/config.yaml beside or inside {package}: reinstall dbexp")


def _check_family(config: Config, problems: Problems) -> None:
    """The rules that depend on the base model's family."""
    family = FAMILIES.get(config.model.family)
    if family is None:
        return
    unit = family.size_multiple
    for path, size in (("model.resolution", config.model.resolution), ("sample.resolution", config.sample.resolution)):
        problems.require(size % unit == 0, f"{path}={size}: must be a multiple of {unit}")
    for path, name, known, of_all in (
        ("lora.sites", config.lora.sites, family.sites, SITES),
        ("prior.sampler", config.prior.sampler, family.samplers, SAMPLERS),
        ("sample.sampler", config.sample.sampler, family.samplers, SAMPLERS),
    ):
        problems.require(
            name in known or name not in of_all,  # what no family knows is refused where the field is declared
            f"{path}={name}: model.family={config.model.family} has {', '.join(known)}",
        )


def _check_together(config: Config, problems: Problems) -> None:
    """The rules that span several fields."""
    schedule, train, dataset = config.lr_schedule, config.train, config.dataset
    problems.require(bool(config.objective), "objective=null: name a column of the metric table, objective=dino")
    horizon = schedule.horizon or train.steps
    decays = schedule.name in ("linear", "cosine", "polynomial")
    problems.require(
        not decays or schedule.warmup_steps < horizon,
        f"lr_schedule.warmup_steps={schedule.warmup_steps}: must be smaller than the horizon of {horizon} steps",
    )
    problems.require(
        schedule.name != "polynomial" or schedule.lr_end < train.lr,
        f"lr_schedule.lr_end={schedule.lr_end:g}: must be smaller than train.lr={train.lr:g}",
    )
    library = OPTIMIZER_LIBRARIES.get(train.optimizer)
    problems.require(
        library is None or importlib.util.find_spec(library) is not None,
        f"train.optimizer={train.optimizer}: needs the package {library}; pip install {library}",
    )
    problems.require(
        train.text_encoder_lr is None or config.lora.text_encoder,
        f"train.text_encoder_lr={train.text_encoder_lr}: has no effect without lora.text_encoder=true",
    )
    problems.require(
        train.optimizer != "prodigy" or train.text_encoder_lr in (None, train.lr),
        f"train.text_encoder_lr={train.text_encoder_lr}: prodigy has one rate for everything; give null",
    )
    problems.require(
        config.lora.text_encoder_rank is None or config.lora.text_encoder,
        f"lora.text_encoder_rank={config.lora.text_encoder_rank}: has no effect without lora.text_encoder=true",
    )
    problems.require(
        dataset.source != "folder" or dataset.path is not None,
        "dataset.path=null: say which folder holds the subject's pictures, dataset.path=FOLDER",
    )
    problems.require(
        dataset.token.strip() != "" and len(dataset.token.split()) == 1,
        f"dataset.token={dataset.token!r}: must be one word",
    )
    problems.require(dataset.class_noun.strip() != "", "dataset.class_noun='': say what the subject is, such as dog")
    problems.require(
        "{token}" in dataset.prompt,
        f"dataset.prompt={dataset.prompt!r}: must contain {{token}}, or nothing would name the subject",
    )
    for path, template in (
        ("dataset.prompt", dataset.prompt),
        ("prior.prompt", config.prior.prompt),
        ("sample.class_prompt", config.sample.class_prompt),
    ):
        try:
            fill(template, dataset)
        except (KeyError, IndexError, ValueError):
            problems.require(False, f"{path}={template!r}: only {{token}} and {{class}} may stand in braces")
    for name in ("mean", "std"):
        values = getattr(config.evaluate.dino, name)
        problems.require(len(values) == 3, f"evaluate.dino.{name}={values}: give three, for red, green and blue")
    if config.prior.path is not None and config.prior.weight > 0:
        problems.require(
            Path(config.prior.path).expanduser().is_dir(), f"prior.path={config.prior.path}: there is no such folder"
        )


def fill(template: str, dataset: DatasetConfig) -> str:
    """Fill {token} and {class} of a prompt.

    Raises:
        KeyError, IndexError, ValueError: another name, or an unmatched brace, stands in the template.
    """
    return template.format(**{"token": dataset.token, "class": dataset.class_noun})


@cache
def _schema() -> DictConfig:
    """The dataclasses as OmegaConf has them, made once: a sweep checks every job twice."""
    schema: DictConfig = OmegaConf.structured(Config)
    return schema


def objectives(value: object) -> list[str]:
    """The columns that an objective names, as a user may write it: dino, dino+clip_t, or a list."""
    if value is None:
        return []
    words = value if isinstance(value, (list, ListConfig)) else str(value).replace("+", ",").split(",")
    return [str(word).strip() for word in words]


def structured(settings: object) -> Config:
    """Settings as dataclasses, with names and types checked, but none of the rules: those are for a run to come.

    Args:
        settings: nested dicts, or OmegaConf's, as a config or a record has them.

    Raises:
        ConfigError: an unknown name, a value of a wrong type, an interpolation of nothing, or values that are missing.
    """
    try:
        node = OmegaConf.create(settings) if isinstance(settings, dict) else settings
        values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
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
        named = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{named}{first_line(error)}") from None
    assert isinstance(config, Config)
    return config


def check(cfg: DictConfig | Config) -> Config:
    """Turn a composed config into plain dataclasses, having applied every rule.

    Args:
        cfg: what Hydra composed, without its `hydra` node, or a `Config`.

    Returns:
        A new `Config`, free of interpolations.

    Raises:
        ConfigError: with one line per problem, each naming the field, its value and what would be right.
    """
    config = structured(asdict(cfg) if isinstance(cfg, Config) else cfg)
    problems = Problems()
    problems.messages += fields.problems(config)
    _check_family(config, problems)
    _check_together(config, problems)
    problems.raise_if_any()
    return config


def advice(config: Config, real_images: int) -> list[str]:
    """Settings that are allowed but rarely meant, as sentences for the log.

    Args:
        config: a checked config.
        real_images: number of the subject's pictures.
    """
    said = []
    train = config.train
    high = 1e-3 if config.model.resolution >= 256 else 5e-3  # narrow models, which draw small pictures, bear more
    if train.optimizer != "prodigy":
        for name, lr in (("train.lr", train.lr), ("train.text_encoder_lr", train.text_encoder_lr)):
            if lr is not None and lr > high:
                said.append(f"{name}={lr:g} is high for LoRA: above {high:g} pictures tend to break")
            if lr is not None and lr < 1e-6:
                said.append(f"{name}={lr:g} is low for LoRA: below 1e-6 little is learnt")
    per_image = train.steps / max(real_images, 1)
    if not 50 <= per_image <= 400:
        said.append(
            f"train.steps={train.steps} is {per_image:.0f} steps for each of {real_images} pictures: "
            "50 to 400 is usual (fewer underfits, more memorises)"
        )
    if config.lora.rank > 128:
        said.append(f"lora.rank={config.lora.rank}: above 128 costs memory and seldom gains anything")
    return said


def plain(value: Any) -> Any:
    """A dataclass or OmegaConf node as dicts, lists and scalars, ready for JSON."""
    if isinstance(value, (DictConfig, ListConfig)):
        return OmegaConf.to_container(value, resolve=True, enum_to_str=True)
    return _listed(asdict(value))


def _listed(value: Any) -> Any:
    """The same with lists for tuples, as JSON has them."""
    if isinstance(value, dict):
        return {key: _listed(one) for key, one in value.items()}
    return [_listed(one) for one in value] if isinstance(value, (list, tuple)) else value


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots as in an override; lists and empty dicts are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
