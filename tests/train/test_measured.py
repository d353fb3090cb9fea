"""How long passes took, noted for estimates."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbexp import models
from dbexp.core.store import Store
from dbexp.estimate import hollow
from dbexp.estimate.card import PretendedCard
from dbexp.train import measured
from dbexp.train.measured import Fact, facts
from dbexp.train.train import train
from tests import builders


def test_a_pack_on_a_card_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_FEWEST", 2)
    store, config = Store(tmp_path), builders.model_config(device="cuda")
    with PretendedCard("a card") as card, hollow.parts_without_weights(card):
        model = models.load(config, store)
        lanes = [builders.training(seed=seed, weight=0.0, steps=3) for seed in (1, 2)]
        train(lanes, model, store)
        key = measured.key(lanes[0], model)
    (fact,) = facts(store.root)
    assert (fact.card, fact.key, fact.lanes) == ("a card", key, 2)
    assert fact.seconds > 0
    models.forget()


def test_a_cpu_or_few_passes_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    train([builders.training(weight=0.0, steps=2)], builders.model(), store)
    assert facts(store.root) == []


def test_what_cannot_be_read_is_nothing(tmp_path: Path) -> None:
    for text in ("{", "[1]", '[{"card": "x"}]'):
        (tmp_path / measured.FILE).write_text(text)
        assert facts(tmp_path) == []


def test_the_latest_are_kept(tmp_path: Path) -> None:
    for number in range(measured._MOST + 1):
        measured._add(tmp_path / measured.FILE, Fact("a card", "", number, 1.0))
    kept = facts(tmp_path)
    assert len(kept) == measured._MOST and kept[-1].lanes == measured._MOST and kept[0].lanes == 1
