"""Rows on their way to the device: what is sent is what was drawn, pictures are found again, and drawing ahead changes
nothing."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dbexp.core.store import Store
from dbexp.train.batch import Batch, Drawing, Pictures, layout, views
from dbexp.train.data import TrainingData, prepare
from dbexp.train.lane import Draw, Lane, enter, open_slots
from dbexp.train.latents import Bank
from tests import builders

CPU = torch.device("cpu")


def bank(start: float, pictures: int) -> Bank:
    """Posteriors that tell the picture by their mean, whose deviation is 1."""
    mean = torch.arange(start, start + pictures).reshape(-1, 1, 1, 1).expand(pictures, 4, 2, 2)
    sizes = torch.arange(start, start + pictures)[:, None].expand(pictures, 6)
    return Bank(mean, torch.ones_like(mean), sizes, tuple(range(pictures)))


def data(instance: Bank, prior: Bank | None, **settings: Any) -> TrainingData:
    return TrainingData(builders.training(weight=0.5 if prior else 0.0, **settings), instance, prior, {})


@pytest.fixture
def lanes(tmp_path: Path) -> list[Lane]:
    """Lanes of different lengths and rows, ready to draw."""
    settings: list[dict[str, Any]] = [{"min_snr_gamma": 5.0}, {"weight": 0.0, "batch_size": 2}, {"seed": 2, "steps": 2}]
    made = prepare([builders.training(**each) for each in settings], builders.model(), Store(tmp_path))
    with open_slots(made, builders.model()) as slots:
        return [enter(slots, slot, entry, builders.model()) for slot, entry in enumerate(made)]


def same(one: Draw, other: Draw) -> bool:
    tensors = ("times", "noise", "latent_noise")
    equal = all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
    return equal and (one.instance, one.prior) == (other.instance, other.prior)


def test_one_buffer_holds_tensors_of_all_kinds() -> None:
    tensors = {
        "times": torch.arange(3),
        "shares": torch.rand(5, dtype=torch.float64),
        "flags": torch.tensor([True, False, True]),
        "noise": torch.randn(3, 4, 2, 2),
        "nothing": torch.empty(0),
    }
    places, size = layout(tensors)
    buffer = torch.zeros(size, dtype=torch.uint8)
    for name, view in views(buffer, places).items():
        view.copy_(tensors[name])
    for name, view in views(buffer.clone(), places).items():
        assert torch.equal(view, tensors[name]) and view.dtype == tensors[name].dtype


class TestPictures:
    def test_lanes_find_theirs_and_share_what_they_can(self) -> None:
        classes = bank(100.0, 6)
        entries = [
            data(bank(0.0, 4), classes),
            data(bank(10.0, 3), None),
            data(bank(20.0, 2), classes),
            data(bank(30.0, 2), classes, sample_latents=False),
        ]
        pictures = Pictures(entries, CPU)
        assert len(pictures.mean) == 4 + 6 + 3 + 2 + 2 + 6, "class pictures twice: drawn from, and taken at their mean"
        noise = torch.randn(7, 4, 2, 2)
        draws = {
            0: Draw([3], [5], *[torch.zeros(2)] * 3),
            1: Draw([2], [], *[torch.zeros(1)] * 3),
            2: Draw([1], [5], *[torch.zeros(2)] * 3),
            3: Draw([0], [4], *[torch.zeros(2)] * 3),
        }
        rows = torch.tensor([row for slot, draw in draws.items() for row in pictures.rows(slot, draw)])
        nothing: Tensor = torch.zeros(7)
        latents = pictures.latents(Batch(nothing, noise, noise, rows, *[nothing] * 6))
        means = torch.tensor([3.0, 105.0, 12.0, 21.0, 105.0, 30.0, 104.0])
        assert pictures.sizes[rows][:, 0].tolist() == means.tolist()
        torch.testing.assert_close(latents[:5], means[:5].reshape(-1, 1, 1, 1) + noise[:5])
        assert torch.equal(latents[5:], means[5:].reshape(-1, 1, 1, 1).expand(2, 4, 2, 2))

    def test_what_is_encoded_once_is_one_bank(self, tmp_path: Path) -> None:
        first, second, mirrored = prepare(
            [builders.training(), builders.training(seed=2), builders.training(flip=True)],
            builders.model(),
            Store(tmp_path),
        )
        assert first.prior is second.prior and first.instance is second.instance
        assert mirrored.prior is not None and mirrored.prior is not first.prior


class TestBatch:
    def test_rows_of_all_lanes(self, lanes: list[Lane]) -> None:
        pictures = Pictures([lane.data for lane in lanes], CPU)
        draws = {slot: lane.draw() for slot, lane in enumerate(lanes)}
        batch = Batch.of(draws, lanes, pictures, builders.model())
        by_slot = {"rates", "stands"}
        assert {len(getattr(batch, field.name)) for field in fields(batch) if field.name not in by_slot} == {2 + 2 + 2}
        assert batch.owners.tolist() == [0, 0, 1, 1, 2, 2]
        assert batch.coefficients.tolist() == [1.0, 1.0, 0.5, 0.5, 1.0, 1.0]
        expected = builders.model().loss_weight(draws[0].times, lanes[0].cfg)
        assert expected is not None and torch.equal(batch.weights, torch.cat([expected, torch.ones(4)]))
        assert torch.equal(batch.noise, torch.cat([draw.noise for draw in draws.values()]))

    def test_what_optimizers_step_with(self, lanes: list[Lane]) -> None:
        """Of lanes that are due; others stand, and the rows of one that has ended count nothing."""
        lanes[1].accumulation = replace(lanes[1].accumulation, every=2, cycle=2)
        pictures = Pictures([lane.data for lane in lanes], CPU)
        draws = {slot: lanes[slot].draw() for slot in (0, 1, 2)}
        batch = Batch.of(draws, lanes, pictures, builders.model(), active=[0, 1])
        assert batch.rates.tolist() == [[1e-3], [0.0], [0.0]] and batch.rates.dtype == torch.float64
        assert batch.stands.tolist() == [0.0, 1.0, 1.0]
        assert batch.coefficients.tolist() == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]
        part = batch.rows(2, 4)
        assert len(part.noise) == 2 and part.owners.tolist() == [1, 1] and part.rates is batch.rates


class TestDrawingAhead:
    def test_a_seat_is_left_with_what_was_drawn_last(self, lanes: list[Lane]) -> None:
        drawing = Drawing(lanes, ahead=False)
        first = drawing.take([0, 1])
        lanes[0].micro += 1
        lanes[1].micro += 1
        second = drawing.take([0], seated=[0, 1, 2])
        assert list(second) == [0, 1, 2]
        assert second[1] is first[1] and not same(second[0], first[0])
        assert second[2] is drawing.take([], seated=[2])[2], "one that had ended before draws once"

    def test_it_changes_nothing(self, lanes: list[Lane]) -> None:
        """Also where others go on than it expected: to a step's boundary, say, or when a lane has ended."""
        turns = [[0, 1, 2], [0, 1, 2], [1], [0, 1], [0, 1]]
        seen: list[list[dict[int, Draw]]] = []
        for ahead in (False, True):
            for lane in lanes:
                lane.micro = 0
            drawing = Drawing(lanes, ahead)
            seen.append([])
            for slots in turns:
                seen[-1].append(drawing.take(slots))
                for slot in slots:
                    lanes[slot].micro += 1
                drawing.begin([0, 1, 2])
            drawing.close()
        for one, other in zip(*seen, strict=True):
            assert one.keys() == other.keys() and all(same(one[slot], other[slot]) for slot in one)
