"""Counts that are found again: nothing is counted twice, and nothing is found that was counted of something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dbexp.core.errors import ConfigError
from dbexp.core.store import Store
from dbexp.estimate import kept, measure
from dbexp.estimate.cards import CARDS
from dbexp.estimate.counts import Count, Drawn, recall
from dbexp.estimate.operation import Operation
from tests import builders

SHAPES = (((2, 3), torch.bfloat16), ((), torch.int64))
COUNT = Count({Operation("aten.mm.default", SHAPES, SHAPES[:1], 12, 34): 5}, 6, "key")


@pytest.mark.parametrize("answer", [COUNT, Drawn(COUNT, Count({}, 7)), {"unet": 8}, 9])
def test_what_was_counted_comes_back(answer: Any, tmp_path: Path) -> None:
    store, asked = Store(tmp_path), list[int]()

    def count() -> Any:
        asked.append(1)
        return answer

    for _ in range(3):
        assert recall(store, {"asked": "a"}, count) == answer
    assert len(asked) == 1
    recall(store, {"asked": "b"}, count)
    recall(None, {"asked": "a"}, count)
    assert len(asked) == 3


def test_what_a_store_cannot_hold_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged entry is counted again; a store that takes nothing costs the time alone."""
    store = Store(tmp_path)
    assert recall(store, {}, lambda: 1) == 1
    (file,) = (tmp_path / kept.STAGE).rglob("count.json")
    file.chmod(0o644)
    file.write_text("{")
    assert recall(store, {}, lambda: 2) == 2

    def refuse(*_: object) -> Path:
        raise ConfigError("store=x: cannot be written")

    monkeypatch.setattr(Store, "get", refuse)
    assert recall(store, {"other": 1}, lambda: 3) == 3


def test_another_process_asks_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But another card, other settings and a base model that was changed are other questions."""
    asked: list[Any] = []

    def note(store: Store | None, question: Any, count: Any) -> Count:
        asked.append(question)
        return COUNT

    monkeypatch.setattr(measure, "recall", note)
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text("{}")
    config = builders.config()
    config.model.path = str(folder)

    def question(card: str = "h100", lanes: int = 1) -> None:
        measure.Measure(tmp_path, CARDS[card]).training(config, lanes)

    question()
    question()
    question(lanes=2)
    question("t4")
    (folder / "unet" / "config.json").write_text('{"sample_size": 8}')
    question()
    assert asked[0] == asked[1]
    assert all(one != other for number, one in enumerate(asked[1:]) for other in asked[number + 2 :])
