"""What is known of published models without counting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dbexp import api
from dbexp.config.schema import Config
from dbexp.core.device import Gpu
from dbexp.estimate import counted
from dbexp.estimate.cards import CARDS
from dbexp.estimate.counted import Counted
from dbexp.estimate.estimate import estimate
from dbexp.estimate.measure import Measure

H100 = Gpu("NVIDIA H100 80GB HBM3", 80 << 30, (9, 0))
T4 = Gpu("Tesla T4", 16 << 30, (7, 5))


@pytest.fixture(scope="module")
def config() -> Config:
    return api.compose(["model=sd15", "prior.weight=0", "evaluate=paper"])


def test_a_published_model(config: Config) -> None:
    known, small = Counted(H100), Counted(T4)
    with_prior = replace(config, prior=replace(config.prior, weight=1.0))
    assert known.lanes(config) == known.lanes(with_prior) == 16
    assert 4 <= (small.lanes(with_prior) or 0) < 16
    alone, together = known.train(config, 1), known.train(config, 8)
    assert alone and together and alone > together > 0
    drawn, slower = known.draw(config), small.draw(config)
    assert drawn and slower and 0 < drawn < slower
    assert known.evaluate(config)


def test_what_takes_more_memory_leaves_room_for_fewer(config: Config) -> None:
    small = Counted(T4)
    wide = replace(config, lora=replace(config.lora, rank=256))
    prior = replace(config, prior=replace(config.prior, weight=1.0))
    thrifty = replace(prior, train=replace(prior.train, gradient_checkpointing=True))
    lanes = [small.lanes(each) or 0 for each in (wide, config, prior, thrifty)]
    assert lanes[0] < lanes[1] > lanes[2] < lanes[3]
    assert min(lanes) >= 1


def test_what_was_not_counted_is_not_known(config: Config) -> None:
    known = Counted(H100)
    for other in (
        replace(config, model=replace(config.model, path="somebody/else")),
        replace(config, model=replace(config.model, resolution=256)),
        replace(config, model=replace(config.model, precision="fp32")),
        replace(config, model=replace(config.model, quantize="fp8")),
        replace(config, lora=replace(config.lora, text_encoder=True)),
        replace(config, lora=replace(config.lora, sites="linear")),
        replace(config, train=replace(config.train, batch_size=7)),
    ):
        assert known.lanes(other) is None and known.train(other, 1) is None, other
    assert known.draw(replace(config, sample=replace(config.sample, resolution=256))) is None
    stranger = Counted(Gpu("A card of tomorrow", 80 << 30, (12, 0)))
    assert stranger.lanes(config) == 16, "memory is memory"
    assert stranger.train(config, 1) is None and stranger.draw(config) is None and stranger.evaluate(config) is None


@pytest.mark.slow
def test_it_is_what_counting_gives(config: Config, tmp_path: Path) -> None:
    (group,) = estimate([config], CARDS["t4"], Measure(tmp_path, CARDS["h100"])).groups
    known = Counted(T4).train(config, 1)
    assert known == pytest.approx(group.step_seconds[0], rel=0.02)
    training = counted._entries()[config.model.path]["train"]["1"]
    assert training["fixed"] + training["lane"] == pytest.approx(group.memory[1] - 1.2 * 2**30, rel=0.02)
