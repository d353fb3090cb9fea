"""The images of a pack's runs, drawn together where that is faster, before each run finds them in the store."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dbexp import models
from dbexp.config.fields import keyed
from dbexp.config.schema import Config
from dbexp.core.errors import Interrupted, count, first_line
from dbexp.core.hashing import key_of
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.pipeline import prepare
from dbexp.pipeline.requests import sample_request
from dbexp.sample import sets
from dbexp.sample.sizes import MOST_AT_ONCE
from dbexp.sample.together import LaneSet, draw_together, pays
from dbexp.train.result import inputs_of, result_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Group:
    """Sets that can be drawn together.

    Attributes:
        asked: whether the user wants it so, faster or not.
    """

    draws: Model
    batch_size: int
    grows: bool
    compile: str
    asked: bool

    def pays(self, wanted: Sequence[LaneSet]) -> bool:
        """Whether they should be."""
        counts = [len(each.sampling.prompts) * each.sampling.images_per_prompt for each in wanted]
        most = MOST_AT_ONCE if self.grows else self.batch_size
        return len(wanted) > 1 and (self.asked or pays(counts, most))


def sample_together(configs: Sequence[Config], store: Store) -> None:
    """Draw images of runs that are trained, in common batches. What fails is only logged: each run draws its own.

    Args:
        configs: of runs with one store.

    Raises:
        Interrupted: a signal came; images that were drawn are kept.
    """
    groups: dict[str, tuple[_Group, dict[Path, LaneSet]]] = {}
    try:
        for config in configs:
            for key, group, path, wanted in _wanted(config, store):
                groups.setdefault(key, (group, {}))[1][path] = wanted
        for group, members in groups.values():
            chosen = [*members.values()]
            if group.pays(chosen):
                log.info("sample: %s of images are drawn together", count(len(chosen), "set"))
                draw_together(
                    "sample",
                    chosen,
                    group.draws,
                    store,
                    batch_size=group.batch_size,
                    grows=group.grows,
                    compile=group.compile,
                )
    except Interrupted:
        raise
    except Exception as error:
        reason = first_line(error, typed=True)
        log.warning("sample: images of several runs were not drawn together (%s); each run draws its own", reason)


def _wanted(config: Config, store: Store) -> Iterator[tuple[str, _Group, Path, LaneSet]]:
    """(key of those that it goes with, their group, entry, set) of each set of a run that is not drawn."""
    how = config.sample.lanes
    if how == "merged" or (how == "auto" and config.model.deterministic) or config.lora.path is not None:
        return
    if how == "auto" and config.model.device == "cpu":
        return
    draws = prepare.drawer(config, store)
    if how == "auto" and draws.device.type != "cuda":
        return
    model = models.load(config.model, store)
    training = prepare.find_training(config, model, store)
    folder = None if training is None else store.find("train", inputs_of(training, model))
    if folder is None:
        return
    request, lora = sample_request(config), result_of(folder).lora
    group = _Group(draws, request.batch_size, request.grows, request.compile, how == "beside")
    for sampling in (request.sampling, request.class_sampling):
        if sampling is None or sets.is_there("sample", sampling, draws, store, lora, request.lora_scale):
            continue
        alike = keyed(replace(sampling, stream="", seed=0, prompts=(), images_per_prompt=1))
        base = {
            "base": draws.identity,
            "dtype": str(draws.dtype),
            "batch": request.batch_size,
            "how": how,
            "compile": request.compile,
        }
        inputs = sets.inputs_of(sampling, draws, store, lora, request.lora_scale)
        path = store.path("sample", inputs)
        yield key_of({**base, **alike}), group, path, LaneSet(sampling, lora, request.lora_scale)
