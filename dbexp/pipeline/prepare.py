"""What a run needs before it trains: inputs checked, store, base model and backbones opened, class images there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dbexp import dataset, models, tracking
from dbexp.config.check import advice
from dbexp.config.schema import Config
from dbexp.config.values import plain
from dbexp.core import folders
from dbexp.core.device import device_type, memory_errors
from dbexp.core.errors import ConfigError, Problems, fields_of
from dbexp.core.hashing import key_of
from dbexp.core.store import Store
from dbexp.dataset import Subject
from dbexp.evaluate import evaluate, objective
from dbexp.evaluate.added import added, columns_of
from dbexp.evaluate.evaluate import Backbones
from dbexp.models import Model, compiled, find
from dbexp.pipeline import elsewhere
from dbexp.pipeline.requests import prior_request, sample_request, texts, training_request
from dbexp.sample import prior, reading
from dbexp.train.data import Training


def open_store(config: Config) -> Store:
    """The store of a config."""
    return Store.of(config.store)


def check_inputs(config: Config, earlier: Sequence[str] = ()) -> None:
    """Everything that is wrong and can be known without weights, in one message.

    Args:
        config: of the run.
        earlier: what is wrong with it. Whatever these settings lead to is not looked at.
    """
    problems = Problems()
    problems.messages += earlier
    wrong = fields_of(earlier)
    for names, look in _LOOKS:
        if not any(field == name or field.startswith(f"{name}.") for field in wrong for name in names):
            with problems.noting():
                problems.messages += look(config)
    problems.raise_if_any()


def _metrics(config: Config) -> list[str]:
    messages: list[str] = []
    added(config.evaluate.more, messages)
    known = columns_of(config.evaluate.more)
    return messages + [wrong for name in config.objective if (wrong := objective.problem(name, known))]


def _samples(config: Config) -> list[str]:
    sample_request(config)
    return []


def _compiler(config: Config) -> list[str]:
    modes, device = {"train": config.train.compile, "sample": config.sample.compile}, config.model.device
    each = (
        compiled.problems(f"{group}.compile", mode, device_type(device))
        for group, mode in modes.items()
        if mode != "none"
    )
    return [*itertools.chain.from_iterable(each)]


def _weights(config: Config) -> list[str]:
    named = {"model.path": config.model.path, "model.sample_path": config.model.sample_path}
    checkpoints = [problem for field, path in named.items() if (problem := find.absent(path, field))]
    return [*checkpoints, *evaluate.absent_files(config.evaluate)]


_SUBJECT = ("source", "path", "root", "name", "hub")
_LOOKS: Sequence[tuple[Sequence[str], Callable[[Config], list[str]]]] = (
    (("evaluate.more", "objective"), _metrics),
    (tuple(f"dataset.{name}" for name in _SUBJECT), lambda config: dataset.problems(config.dataset)),
    (("prior", "model", "dataset.token", "dataset.class_noun"), lambda config: prior.problems(prior_request(config))),
    (("sample", "dataset.token"), _samples),
    (("lora", "model"), elsewhere.problems),
    (("model.path", "model.sample_path", "evaluate.dino", "evaluate.lpips"), _weights),
    (("tracking",), tracking.problems),
    (("train.compile", "sample.compile", "model.device"), _compiler),
    (("store",), lambda config: folders.unusable("store", config.store, readable=True)),
)
"""What a look at inputs reads, groups or settings; what it finds."""


def ready(config: Config, earlier: Sequence[str] = ()) -> tuple[Store, Model, Backbones]:
    """Everything that a run needs before it trains; a second call for the same run looks at nothing again.

    Args:
        config: of the run.
        earlier: what is wrong with it, to be told with what is wrong with its inputs.

    Raises:
        ConfigError: with what is wrong with the inputs, or with the networks.
    """
    if earlier:  # no key can be made of some values
        check_inputs(config, earlier)
    named = replace(config, dataset=replace(config.dataset, name=dataset.subject_name(config.dataset)))
    key = key_of(plain(named))
    if key not in _ready:
        check_inputs(config)
        store = open_store(config)
        _ready.clear()
        _ready[key] = (store, *load(config, store))
    return _ready[key]


_ready: dict[str, tuple[Store, Model, Backbones]] = {}
"""Of the last run that was looked at."""


def load(config: Config, store: Store) -> tuple[Model, Backbones]:
    """Base model and metric backbones, before hours are spent on a run whose metrics cannot be computed.

    Raises:
        ConfigError: with what is not there, does not fit in memory, or is cut off by a text encoder.
    """
    with memory_errors("free some, or choose smaller networks for model and evaluate", loading=True):
        model = _base_model(config, store)
        return model, evaluate.load_backbones(config.evaluate, model.device, store)


def _base_model(config: Config, store: Store) -> Model:
    """The base model, held against everything that the run names.

    Raises:
        ConfigError: it, or what draws with the LoRA, is not there, is not fit to be trained, or cuts a text.
    """
    problems = Problems()
    with problems.noting():
        model = models.load(config.model, store)
    with problems.noting():
        draws = drawer(config, store)
    problems.raise_if_any()
    for field, path, each in (("path", config.model.path, model), ("sample_path", config.model.sample_path, draws)):
        problems.require(
            not each.needs_mask,
            f"model.{field}={path}: an inpainting checkpoint, which is not trained here; train on the "
            "checkpoint that it was made from: dbexp-generate draws with this one, too",
        )
    problems.raise_if_any()
    with problems.noting():
        elsewhere.require_fit(config, model, draws, store)
    for each in dict.fromkeys((model, draws)):
        with problems.noting():
            reading.require(reading.look(texts(config), config.dataset.token, each, store))
    problems.raise_if_any()
    return model


def warnings(config: Config, subject: Subject, model: Model, store: Store) -> Iterator[str]:
    """What is allowed in a run but rarely meant, as sentences."""
    yield from advice(config, len(subject.paths))
    yield from dataset.warnings(subject, config.model.resolution)
    yield from prior.warnings(prior_request(config))
    read = reading.look(texts(config), subject.token, model, store)
    yield from (*read.cuts, *read.notes)


def make_training(config: Config, model: Model, store: Store) -> Training:
    """What a run trains on, with its class images drawn if they are not there: for training it in a pack.

    Raises:
        ConfigError: as `run` would.
    """
    class_images = prior.prior_images(prior_request(config), model, store)
    return training_of(config, dataset.load(config.dataset, store), class_images, model, store)


def training_of(config: Config, subject: Subject, class_images: Sequence[Path], model: Model, store: Store) -> Training:
    """What a run trains on, whose pictures are there."""
    start, base_lora = elsewhere.beginning(config, model, store), elsewhere.of_base(config, model, store)
    return training_request(config, subject.paths, subject.prompt, class_images, start, base_lora)


def drawer(config: Config, store: Store) -> Model:
    """The base model that draws with the LoRA of a run, and its row of the base model.

    Raises:
        ConfigError: as `models.load` does.
    """
    try:
        return models.load(models.drawing(config.model), store)
    except ConfigError as error:
        if config.model.sample_path is None:
            raise
        raise ConfigError(p.replace("model.path=", "model.sample_path=") for p in error.problems) from None


def find_training(config: Config, model: Model, store: Store) -> Training | None:
    """The same, if nothing has to be drawn for it."""
    class_images = prior.find_prior_images(prior_request(config), model, store)
    if class_images is None:
        return None
    return training_of(config, dataset.load(config.dataset, store), class_images, model, store)
