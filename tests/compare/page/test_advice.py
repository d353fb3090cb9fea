"""The answer that a page opens with is that of the recommendation."""

from __future__ import annotations

import shlex
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from dbexp.compare.comparison import Comparison
from dbexp.compare.gather import compare
from dbexp.compare.page.advice import advice
from dbexp.compare.page.page import page
from dbexp.runs.costs import Costs
from dbexp.runs.folder import RunFolder
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


def test_distances_of_the_others_are_those_of_the_recommendation(comparison: Comparison) -> None:
    """One straight scale: a bar is where its interval is, and ties are those that its sentence names."""
    answer, of = advice(comparison), comparison.recommendation
    assert answer is not None and answer.parameters == "rank · weight"
    assert [distance.title for distance in answer.distances] == [standing.title for standing in of.standings[1:]]
    assert {distance.title for distance in answer.distances if distance.is_tied} == set(answer.rivals)
    for distance, standing in zip(answer.distances, of.standings[1:], strict=True):
        assert distance.values == " · ".join(standing.settings.values())
        assert standing.behind is not None and standing.behind.scope == answer.scope
        ends = (standing.behind.low, standing.behind.value, standing.behind.high)
        places = (distance.low, distance.value, distance.high)
        scale = {
            round((place - answer.zero) / end, 6) for place, end in zip(places, ends, strict=True) if abs(end) > 1e-6
        }
        assert len(scale) == 1 and scale.pop() > 0
        assert all(0 <= place <= 100 for place in places)


def test_costs_have_the_least_of_all_settings_beside_them(tmp_path: Path) -> None:
    folder = sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "prior.weight": (0, 1)}, side=8)
    comparison = compare([folder])
    assert comparison.recommendation.first is not None
    recommended = comparison.recommendation.first.settings
    costs = {"4": Costs(train_seconds=60.0, parameters=100), "8": Costs(train_seconds=30.0, parameters=100)}
    entries = {
        id(entry): replace(entry, run=replace(entry.run, costs=costs[entry.settings["lora.rank"]]))
        for entry in comparison.entries
    }
    standings = tuple(
        replace(standing, entries=tuple(entries[id(entry)] for entry in standing.entries))
        for standing in comparison.recommendation.standings
    )
    answer = advice(replace(comparison, recommendation=replace(comparison.recommendation, standings=standings)))
    assert answer is not None
    seconds = {"4": ("60 s", "30 s"), "8": ("30 s", "")}[recommended["lora.rank"]]
    assert [(cost.name, cost.value, cost.least) for cost in answer.costs] == [
        ("train", *seconds),
        ("parameters", "100", ""),
    ]


def test_it_says_how_to_draw_with_it_where_its_lora_is(comparison: Comparison, tmp_path: Path) -> None:
    answer = advice(comparison)
    assert answer is not None and answer.use == "", "these runs have no LoRA"
    folder = sweeps.sweep(tmp_path / "of mine", {"lora.rank": (4, 8)}, side=8)
    for run in folder.iterdir():
        RunFolder(run).lora.parent.mkdir(exist_ok=True)
        RunFolder(run).lora.touch()
    answer = advice(compare([folder]))
    assert answer is not None
    program, run_of, prompt = shlex.split(answer.use)
    assert program == "dbexp-generate" and prompt == "prompt=a {token} {class} in the snow"
    assert run_of.removeprefix("run=") in {str(run) for run in folder.iterdir()}


def test_without_seeds_it_says_that_nothing_is_sure(tmp_path: Path) -> None:
    comparison = compare([sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, side=8)])
    answer = advice(comparison)
    assert answer is not None and not answer.repeated
    assert "Trained once:" in page(comparison, tmp_path)


def test_seeds_alone_are_no_choice(tmp_path: Path) -> None:
    comparison = compare([sweeps.sweep(tmp_path, {"seed": (1, 2, 3)}, side=8)])
    answer, text = advice(comparison), page(comparison, tmp_path)
    assert answer is not None and answer.setting == "" and answer.others == 0
    scores = [entry.run.value("recommend") for entry in comparison.finished]
    assert answer.spread == f"± {statistics.stdev(scores):.3f}"
    assert f"Score {answer.score} <b>{answer.spread}</b> between training seeds" in text
    assert "these runs" in text and "<h2>take</h2>" not in text


def test_one_run_is_not_called_sure(tmp_path: Path) -> None:
    comparison = compare([sweeps.sweep(tmp_path, {"seed": (1,)}, side=8)])
    text = page(comparison, tmp_path)
    assert "another seed may come out otherwise" in text and "this run" in text


def test_without_a_result_there_is_no_answer_and_no_claim(tmp_path: Path) -> None:
    sweeps.failed(tmp_path / "0", {"lora.rank": 4}, "no memory")
    text = page(compare([tmp_path]), tmp_path)
    assert "No run has a result yet." in text and "no memory" in text
    assert "Copies" not in text and "how sure" not in text


def test_where_nothing_is_recommended_the_sentence_says_why(comparison: Comparison, tmp_path: Path) -> None:
    lacking = replace(
        comparison, recommendation=replace(comparison.recommendation, standings=(), shares=(), lacks=("x",))
    )
    assert advice(lacking) is None
    assert 'id="advice"' not in page(lacking, tmp_path) and "it needs x" in page(lacking, tmp_path)
