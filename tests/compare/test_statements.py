"""The sentences of a comparison, from a sweep whose effects are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dbexp.compare.changes import change
from dbexp.compare.comparison import Comparison, Scale
from dbexp.compare.gather import compare
from dbexp.compare.inference.components import UNKNOWN, Parts
from dbexp.compare.inference.estimate import Counts, EffectEstimate, Rule
from dbexp.compare.markdown import markdown
from dbexp.compare.statements import Statement, statements
from dbexp.compare.statistics import Moments
from tests.compare import sweeps

NONE = math.nan


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two ranks, two weights, three seeds."""
    folder = sweeps.sweep(tmp_path_factory.mktemp("sweep"))
    sweeps.failed(folder / "12", {"lora.rank": 4, "prior.weight": 2}, "it | failed\nsooner or later")
    return compare([folder], "dino")


def about(comparison: Comparison, subject: str) -> Statement:
    (statement,) = [statement for statement in statements(comparison) if statement.subject.startswith(subject)]
    return statement


def test_the_best_is_the_highest_mean_and_stands_between_base_and_real(comparison: Comparison) -> None:
    means = [standing.moments["dino"].mean for standing in comparison.standings]
    assert len(means) == 4 and means == sorted(means, reverse=True)
    assert comparison.standings[0].settings == {"lora.rank": "8", "prior.weight": "0"}
    bases = [row.columns["dino"].value for row in comparison.references if row.key == "base"]
    part = (means[0] - sum(bases) / len(bases)) / (0.82 - sum(bases) / len(bases))
    statement = about(comparison, "Best by DINO").sentence
    assert f"rank=8 weight=0 with {means[0]:.3f}, {100 * part:.0f} % of the way from base to real" in statement
    assert "(mean of runs 6, 7 and 8)" in statement


def test_what_a_weight_does(comparison: Comparison) -> None:
    statement = about(comparison, "prior.weight 0 → 1")
    by_column = {change.column: change for change in statement.changes}
    assert {column: change.verdict for column, change in by_column.items()} == {
        "DINO": "worse",
        "CLIP-I": "worse",
        "CLIP-T": "better",
        "PRES": "better",
        "DIV": "better",
    }
    assert by_column["DIV"].value == "+0.030" and not by_column["PRES"].is_small
    assert float(by_column["PRES"].value.replace("−", "-")) == pytest.approx(-0.12, abs=0.02)
    assert "gains" in statement.verdict and "costs" in statement.verdict
    assert statement.basis.startswith(
        "6 pairs of runs; 48 pairs of pictures; for prompts and training seeds like these (4 prompts, 3 seeds)"
    )
    assert (
        statement.sentence.count("of the way from base to real") == 2
    )  # once with what is better, once with what is worse


def test_a_larger_rank_says_what_it_costs(comparison: Comparison) -> None:
    statement = about(comparison, "lora.rank 4 → 8")
    assert "2 times the parameters" in statement.text and statement.verdict.endswith("for 2× the parameters")
    (unchanged,) = [change for change in statement.changes if change.column == "DIV"]
    assert unchanged.verdict == "same" and "every interval includes zero" in statement.text


def test_chance_is_the_spread_between_seeds(comparison: Comparison) -> None:
    assert f"DINO {comparison.noise['dino'].deviation:.3f}" in about(comparison, "Chance").text


def estimate(value: float, low: float, high: float, seeds: int = 3) -> EffectEstimate:
    """From a picture of each of ten prompts."""
    return EffectEstimate(
        value, low, high, Rule(), Counts(seeds, 10, 1, 1, seeds, 10 * seeds), Parts(*[UNKNOWN] * 3), seeds, False
    )


def test_what_was_trained_once_is_neither_better_nor_worse() -> None:
    assert change("dino", estimate(0.1, 0.05, 0.2, seeds=1)).verdict == "once"


@pytest.mark.parametrize(
    ("column", "value", "low", "high", "scale", "noise", "verdict", "share", "is_small"),
    [
        ("dino", 0.1, 0.05, 0.2, Scale(0.3, 0.8), None, "better", "+20 %", False),
        ("dino", -0.02, -0.03, -0.01, Scale(0.3, 0.8), 0.001, "worse", "−4 %", True),
        ("pres", -0.1, -0.2, -0.05, None, None, "better", "", False),
        ("clip_t", 0.01, 0.005, 0.02, None, 0.02, "better", "", True),
        ("clip_t", 0.01, -0.005, 0.02, None, 0.001, "same", "", False),
        ("div", 0.1, NONE, NONE, None, None, "open", "", False),
    ],
)
def test_a_change_is_judged_by_its_interval_and_its_size(
    column: str,
    value: float,
    low: float,
    high: float,
    scale: Scale | None,
    noise: float | None,
    verdict: str,
    share: str,
    is_small: bool,
) -> None:
    result = change(column, estimate(value, low, high), scale, None if noise is None else Moments(NONE, noise, 4))
    assert (result.verdict, result.share, result.is_small) == (verdict, share, is_small)


def test_results_md_has_the_sentences_and_the_rows(comparison: Comparison) -> None:
    text = markdown(comparison)
    table = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    by_run = {cells[0].removeprefix("| "): cells for cells in table}
    for entry in comparison.finished:
        assert entry.run.report is not None
        estimate = entry.run.report.rows["run"]["dino"]
        cell = by_run[entry.id][1 + len(comparison.factors)]
        assert cell.replace("*", "") == f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"
        assert cell.startswith("**") == (f"{estimate.value:.3f}" == f"{comparison.finished[0].run.value('dino'):.3f}")
    assert "- **prior.weight 0 → 1:** better CLIP-T" in text
    assert "it \\| failed" in text and "sooner" not in text, "a cell must not break its table"


def test_a_sweep_of_one_has_nothing_to_compare(tmp_path: Path) -> None:
    sweeps.run(tmp_path / "0", {}, sweeps.PROMPTS, 1, 8)
    sentences = statements(compare([tmp_path]))
    assert [statement.subject for statement in sentences] == ["Recommendation"]
    sentences = statements(compare([tmp_path], "dino"))
    assert [statement.subject for statement in sentences] == ["Best by DINO", "Recommendation"]


def test_the_values_of_a_search_are_not_compared_step_by_step(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"train.lr": [1e-4 * n for n in range(1, 14)]}, prompts=sweeps.PROMPTS[:2], each=1, side=8)
    comparison = compare([tmp_path])
    assert comparison.effects == () and len(comparison.standings) == 13
    assert about(comparison, "train.lr").text.startswith("has 13 values, too many to compare step by step")
