"""What is known of published models without counting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dbexp import api, models
from dbexp.config import groups
from dbexp.config.schema import Config
from dbexp.core.device import Gpu
from dbexp.estimate import counted
from dbexp.estimate.cards import CARDS
from dbexp.estimate.counted import Counted
from dbexp.estimate.measure import Measure
from dbexp.estimate.roofline import seconds

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


OPTIONS = sorted(
    {path.stem for path in (groups.conf_dir() / "model").glob("*.yaml")} - {"custom", "random", "storybook"}
)
"""Of published checkpoints."""


@pytest.mark.parametrize("option", OPTIONS)
def test_every_published_option_is_known(option: str) -> None:
    """Also that a checkpoint that only draws is known as such, by the option that it draws for."""
    known, config = Counted(H100), api.compose([f"model={option}", "evaluate=paper"])
    drawn, trained = known.draw(replace(config, model=models.drawing(config.model))), known.train(config, 1)
    assert drawn and trained and known.lanes(config) and known.evaluate(config)
    if config.model.sample_path is not None:
        base = known.draw(config)
        assert base and drawn < 0.8 * base, "it draws without guidance"


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_it_is_what_counting_gives(option: str, tmp_path: Path) -> None:
    """Of a lane's training; of a checkpoint that only draws, of its images."""
    config = api.compose([f"model={option}", "prior.weight=0", "evaluate=paper"])
    measure, known, card = Measure(tmp_path, CARDS["h100"]), Counted(T4), CARDS["t4"]
    if config.model.sample_path is not None:
        config = replace(config, model=models.drawing(config.model))
        drawn = measure.drawing(config, 8)
        step, rest = (seconds(part.operations, card) / 8 for part in (drawn.step, drawn.rest))
        assert known.draw(config) == pytest.approx(step + rest / config.sample.steps, rel=0.02)
        return
    one, two = (measure.training(config, lanes) for lanes in (1, 2))
    training = counted._entries()[config.model.path]["train"][counted._variant(config)]
    assert known.train(config, 1) == pytest.approx(seconds(one.operations, card), rel=0.02)
    assert 2 * (known.train(config, 2) or 0) == pytest.approx(seconds(two.operations, card), rel=0.02)
    assert training["fixed"] + training["lane"] == pytest.approx(one.peak, rel=0.02)
    assert training["fixed"] + 2 * training["lane"] == pytest.approx(two.peak, rel=0.02)
