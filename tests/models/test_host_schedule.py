"""Samplers whose times stay on the host: the same images, and on a card no step that waits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from dbexp import models
from dbexp.config.families import FAMILIES
from dbexp.core.store import Store
from dbexp.estimate import hollow
from dbexp.estimate.card import PretendedCard
from dbexp.models import Batch, Model
from dbexp.models.host_schedule import keep_on_host
from tests import builders
from tests.models import drawing

CPU = torch.device("cpu")
SAMPLERS = [(family, sampler) for family in ("sd", "z_image") for sampler in (None, *FAMILIES[family].samplers)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """Small random ones on the CPU."""
    store = Store(tmp_path_factory.mktemp("store"))
    bases = {}
    for family in ("sd", "z_image"):
        bases[family] = models.load(builders.model_config(path="random", resolution=64, family=family), store)
    models.forget()
    return bases


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # diffusers
@pytest.mark.parametrize(("family", "sampler"), SAMPLERS)
def test_images_stay_what_they_are(family: str, sampler: str | None, bases: dict[str, Model]) -> None:
    model = bases[family]
    batch = drawing.batch(model, 3.0)
    plain, host = model.pipeline(sampler), model.pipeline(sampler)
    keep_on_host(host.scheduler, CPU)
    for _ in range(2):  # a pipeline draws batch after batch
        assert np.array_equal(model.draw(host, batch), model.draw(plain, batch))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm++", "euler_a", "heun", "pndm", "unipc"])
def test_so_do_images_that_start_from_one(sampler: str, bases: dict[str, Model]) -> None:
    model = bases["sd"]
    batch = drawing.batch(model, 3.0, steps=5, image=drawing.picture(), strength=0.6)
    plain, host = model.pipeline(sampler, "image"), model.pipeline(sampler, "image")
    keep_on_host(host.scheduler, CPU)
    assert np.array_equal(model.draw(host, batch), model.draw(plain, batch))


@pytest.fixture(scope="module")
def card_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("card"))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # diffusers
@pytest.mark.parametrize(("family", "sampler"), SAMPLERS)
def test_no_step_waits_for_the_card(
    family: str, sampler: str | None, bases: dict[str, Model], card_store: Store
) -> None:
    folder: Path = bases[family]._folder  # type: ignore[attr-defined]  # a checkpoint's
    settings = builders.model_config(path=str(folder), resolution=64, family=family, device="cuda", precision="bf16")
    card, waits = PretendedCard(), []
    with card, hollow.parts_without_weights(card):
        model = models.load(settings, card_store)

        def after_step(step: int, steps: int) -> None:
            waits.append(Counter(card.waits))
            card.forget()

        drawn: Batch = drawing.batch(model, 3.0, steps=4, after_step=after_step)
        model.draw(model.pipeline(sampler), drawn)
    models.forget()
    assert len(waits) >= 4
    assert not any(waits[1:]), waits  # before the first one ends, noise and times are sent
