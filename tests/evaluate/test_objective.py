"""What runs are judged by: columns, trade-offs, and the recommendation by its definition."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import harmonic_mean

import pytest

from dbexp.evaluate import objective
from dbexp.evaluate.columns import COLUMNS, RECOMMEND, column_of, in_order, terms
from dbexp.evaluate.functional import Estimate

ROWS = {
    "run": {"dino": 0.5, "clip_t": 0.29, "pres": 0.4, "div": 0.5, "n_blank": 1.0},
    "base": {"dino": 0.2, "clip_t": 0.31, "pres": 0.3},
    "real": {"dino": 0.8, "clip_i": 0.9, "clip_t": 0.21},
}


def rows(**run: float) -> dict[str, dict[str, Estimate]]:
    changed: Mapping[str, Mapping[str, float]] = ROWS | {"run": {**ROWS["run"], **run}}
    return {row: {name: Estimate(value) for name, value in columns.items()} for row, columns in changed.items()}


def test_the_recommendation_is_the_harmonic_mean_of_three_shares() -> None:
    shares = {"subject": 0.3 / 0.6, "prompt": 0.08 / 0.1, "class": 0.4 / 0.5}
    assert objective.parts(rows()) == pytest.approx(shares)
    assert objective.value(rows(), RECOMMEND) == pytest.approx(harmonic_mean(shares.values()))
    assert objective.with_score(rows())[RECOMMEND].value == objective.value(rows(), RECOMMEND)


@pytest.mark.parametrize(
    "run",
    [
        {"dino": 0.2, "clip_t": 0.31, "pres": 0.3},  # the base model itself
        {"dino": 0.8, "clip_t": 0.21, "pres": 0.5},  # photographs, whatever the prompt says
        {"dino": 0.8, "clip_t": 0.31, "pres": 0.8},  # a class that has become the subject
        {"dino": 0.1},
    ],
)
def test_who_gives_one_of_the_three_wholly_away_has_nothing(run: dict[str, float]) -> None:
    assert objective.value(rows(**run), RECOMMEND) == 0
    assert set(objective.slopes(rows(**run), RECOMMEND).values()) == {0.0}


def test_beyond_the_ends_nothing_is_gained() -> None:
    assert objective.value(rows(dino=0.9, clip_t=0.4, pres=0.1), RECOMMEND) == 1


def test_slopes_are_derivatives() -> None:
    step = 1e-6
    for column, slope in objective.slopes(rows(), RECOMMEND).items():
        ends = [objective.value(rows(**{column: ROWS["run"][column] + by}), RECOMMEND) for by in (step, -step)]
        assert slope == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        ("base", "dino", "samples of the base model (sample.base=true)"),
        ("run", "pres", "class images (sample.class_images=25 or more)"),
        ("real", "dino", "two real images of the subject"),
        ("real", "clip_t", "CLIP-T of the real images"),
    ],
)
def test_what_is_missing_is_named(row: str, column: str, says: str) -> None:
    gap = rows()
    del gap[row][column]
    assert math.isnan(objective.value(gap, RECOMMEND)) and RECOMMEND not in objective.with_score(gap)
    assert any(says in lack for lack in objective.lacks(gap)) and objective.slopes(gap, RECOMMEND) == {}
    assert objective.lacks(rows()) == []


def test_ends_that_are_not_apart_make_no_way() -> None:
    near = rows() | {"base": {**rows()["base"], "dino": Estimate(0.79)}}
    assert objective.lacks(near) == ["a base model that is at least 0.02 from real images in DINO"]
    assert math.isnan(objective.value(near, RECOMMEND))


def test_a_trade_off_is_plain_arithmetic() -> None:
    name = "0.5*dino+2*clip_t-.25*pres"
    assert terms(name) == {"dino": 0.5, "clip_t": 2, "pres": -0.25} == objective.slopes(rows(), name)
    assert objective.value(rows(), name) == pytest.approx(0.25 + 0.58 - 0.1)
    assert math.isnan(objective.value(rows(), "1*dino+1*clip_i"))
    assert column_of(name).title == "0.5 DINO + 2 CLIP-T − 0.25 PRES" and column_of(name).sign == 1
    assert terms("dino") == terms("2*dino3*x") == terms("*dino") == terms("dino*2") == {}


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("recommend", None),
        ("pres", None),
        ("dino-0.3*pres", None),
        ("beauty", "objective=beauty: choose one of recommend, dino, clip_i"),
        ("dino_real", "is no column that ranks runs"),
        ("0.5*dino+0.5*beauty", "there is no column beauty"),
        ("0.5*dino+0.5*pres", "lower PRES is better; write -0.5*pres"),
        ("1*clip_t-2*dino", "higher DINO is better; write 2*dino"),
        ("1*dino+1*dino_real", "leave it out"),
    ],
)
def test_what_is_wrong_with_an_objective(name: str, says: str | None) -> None:
    problem = objective.problem(name)
    assert problem is None if says is None else problem is not None and says in problem


def test_columns_stand_in_their_order() -> None:
    assert in_order(["pres", "dino", "recommend", "pres"]) == ["dino", "pres", "recommend"]
    assert in_order(reversed(COLUMNS)) == list(COLUMNS)
