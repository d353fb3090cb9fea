"""What work took on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dbexp.core import rates
from dbexp.core.rates import Rates, device_name


def test_what_was_noted_is_told(tmp_path: Path) -> None:
    assert Rates(tmp_path).of({"work": "draw"}) is None
    Rates(tmp_path).note({"work": "draw", "resolution": 64}, 10, 5)
    assert Rates(tmp_path).of({"resolution": 64, "work": "draw"}) == 0.5
    assert Rates(tmp_path).of({"resolution": 32, "work": "draw"}) is None


def test_the_median_of_the_latest_counts(tmp_path: Path) -> None:
    noted = Rates(tmp_path)
    for amount in (1000, 1000, 1000, 9, 1, 2, 3, 4):
        noted.note({"work": "draw"}, 1, amount)
    assert Rates(tmp_path).of({"work": "draw"}) == 3


def test_the_latest_kinds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_MOST", 3)
    for kind in (0, 1, 2, 0, 3):
        Rates(tmp_path).note({"kind": kind}, 1, 1)
    assert [Rates(tmp_path).of({"kind": kind}) for kind in range(4)] == [1, None, 1, 1]


@pytest.mark.parametrize("content", ["", "[1, 2]", "{"])
def test_a_damaged_file_knows_nothing_and_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / rates.FILE).write_text(content)
    assert Rates(tmp_path).of({"work": "draw"}) is None
    Rates(tmp_path).note({"work": "draw"}, 1, 1)
    assert Rates(tmp_path).of({"work": "draw"}) == 1


def test_a_place_that_cannot_be_written_costs_nothing_but_the_note(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Rates(tmp_path / "file").note({"work": "draw"}, 1, 1)


def test_the_name_of_a_processor_has_its_threads() -> None:
    assert device_name(torch.device("cpu")).endswith(f", {torch.get_num_threads()} threads")
