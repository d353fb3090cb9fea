"""The answer that a page opens with is that of the recommendation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dbexp.compare.comparison import Comparison
from dbexp.compare.gather import compare
from dbexp.compare.page.advice import advice
from dbexp.compare.page.page import page
from tests.compare import sweeps


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare([sweeps.sweep(tmp_path_factory.mktemp("sweep"), side=8)])


def test_it_is_the_recommended_setting_with_its_shares(comparison: Comparison) -> None:
    answer, of = advice(comparison), comparison.recommendation
    assert answer is not None and of.first is not None
    assert answer.setting == of.first.title and answer.rule == of.rule
    assert [meter.percent for meter in answer.meters] == [
        round(100 * of.shares[0][name]) for name in ("subject", "prompt", "class")
    ]
    assert set(answer.rivals) == {standing.title for standing in of.not_told_apart}
    assert answer.others == len(of.standings) - 1 == 3 and answer.repeated


def test_the_highest_dino_is_named_where_it_is_another(comparison: Comparison) -> None:
    answer = advice(comparison)
    assert answer is not None
    dino = {standing.title: standing.moments["dino"].mean for standing in comparison.standings}
    highest = max(dino, key=dino.__getitem__)
    assert answer.alternative == ("" if highest == answer.setting else highest)
    if answer.alternative:
        assert answer.alternative_value == f"DINO {dino[highest]:.3f}"


def test_without_seeds_it_says_that_nothing_is_sure(tmp_path: Path) -> None:
    comparison = compare([sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, side=8)])
    answer = advice(comparison)
    assert answer is not None and not answer.repeated
    assert "Trained once:" in page(comparison, tmp_path)


def test_where_nothing_is_recommended_the_sentence_says_why(comparison: Comparison, tmp_path: Path) -> None:
    lacking = replace(
        comparison, recommendation=replace(comparison.recommendation, standings=(), shares=(), lacks=("x",))
    )
    assert advice(lacking) is None
    assert 'id="advice"' not in page(lacking, tmp_path) and "it needs x" in page(lacking, tmp_path)
