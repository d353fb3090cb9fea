"""What a lane takes, and how many lanes that leaves room for."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from dbexp.core.store import Store
from dbexp.train import memory
from dbexp.train.memory import Cost
from dbexp.train.result import Trained
from dbexp.train.train import train
from tests import builders


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture(autouse=True)
def nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_measured", {})


def available(monkeypatch: pytest.MonkeyPatch, count: float) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=count))


def lane_bytes(store: Store, **settings: Any) -> int:
    """What one lane of these settings takes on the CPU."""
    return memory._backward_bytes(builders.training(**settings), builders.model(), store)


class TestOnACpu:
    def test_a_lane_grows_with_its_rows(self, store: Store) -> None:
        one, four = (lane_bytes(store, weight=0.0, batch_size=rows) for rows in (1, 4))
        weights = (4 + 2) * sum(parameter.numel() * 4 for parameter in parameters())
        assert one > weights
        assert (four - weights) / (one - weights) == pytest.approx(4, rel=0.05)

    def test_class_images_are_rows(self, store: Store) -> None:
        assert lane_bytes(store, weight=1.0) == pytest.approx(lane_bytes(store, weight=0.0, batch_size=2), rel=0.01)

    def test_recomputing_activations_takes_less(self, store: Store) -> None:
        rows = {"weight": 0.0, "batch_size": 4}
        assert lane_bytes(store, gradient_checkpointing=True, **rows) < 0.5 * lane_bytes(store, **rows)

    def test_half_of_the_memory_may_be_used(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        trainings = [builders.training(seed=seed) for seed in range(5)]
        lane = lane_bytes(store)
        with caplog.at_level(logging.INFO):
            for lanes, count in ((2 * 5, 5), (2 * 3.5, 3), (0.1, 1)):
                available(monkeypatch, lane * lanes)
                assert memory.room(trainings, builders.model(), store) == count
        assert "pack size: 3 of 5 lanes at once: a lane takes " in caplog.text
        assert "50 % may be used" in caplog.text

    def test_the_largest_lane_counts_and_is_measured_once(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        measured: list[int] = []

        def measure(training: Any, *_: Any) -> Cost:
            measured.append(training.cfg.batch_size)
            return Cost(0, 10)

        monkeypatch.setattr(memory, "_measure", measure)
        trainings = [builders.training(batch_size=size) for size in (1, 3, 2)]
        for _ in range(2):
            memory.room(trainings, builders.model(), store)
        assert measured == [3]

    def test_it_leaves_no_trace(self, store: Store, tmp_path: Path) -> None:
        """A lane that was measured trains to the same bytes."""
        training, model = builders.training(steps=2), builders.model()
        memory.room([training, training], model, store)
        (after,), (before,) = train([training], model, store), train([training], model, Store(tmp_path / "other"))
        assert isinstance(after, Trained) and isinstance(before, Trained)
        assert after.history == before.history


def parameters() -> list[torch.nn.Parameter]:
    adapter = builders.adapter(builders.model(), {"unet": 4}, {"unet": 4.0})
    return adapter.parameters("unet")


class TestOnAGpu:
    """Peaks come from a formula: no GPU is needed to see what is made of them."""

    def test_two_peaks_tell_both_parts(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(memory, "_peak", lambda training, count, *_: 700 + 40 * count)
        model: Any = SimpleNamespace(device=torch.device("cuda"))
        assert memory._measure(builders.training(), model, store) == Cost(700, 40)

    def test_when_not_even_two_fit(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def peak(*_: Any) -> int:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(memory, "_peak", peak)
        monkeypatch.setattr(memory, "free_memory", lambda _: 1000)
        model: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, identity="")
        assert memory.room([builders.training(), builders.training(seed=2)], model, store) == 1

    @pytest.mark.gpu
    def test_what_was_measured_fits(self, store: Store) -> None:
        config = builders.config()
        config.model.device = "cuda"
        from dbexp.models import load

        model = load(config.model, store)
        cost = memory._measure(builders.training(), model, store)
        peak = memory._peak(builders.training(), 6, model, store)
        assert peak == pytest.approx(cost.fixed + 6 * cost.lane, rel=0.1)


@pytest.mark.parametrize(
    ("device", "gpus", "lanes"), [("auto", True, 16), ("auto", False, 8), ("cuda:1", False, 16), ("cpu", True, 8)]
)
def test_most_lanes(monkeypatch: pytest.MonkeyPatch, device: str, gpus: bool, lanes: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    assert memory.most_lanes(device) == lanes
