"""Figures hold the numbers of the runs."""

from __future__ import annotations

import pytest

from dbexp.compare.comparison import Comparison
from dbexp.compare.gather import compare
from dbexp.compare.page.charts import Chart, charts, plain
from tests.compare import sweeps


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare([sweeps.sweep(tmp_path_factory.mktemp("sweep"), side=8)])


@pytest.fixture(scope="module")
def plots(comparison: Comparison) -> dict[str, Chart]:
    return {chart.key: chart for chart in charts(comparison)}


def test_every_chart_is_there(plots: dict[str, Chart]) -> None:
    effects = ["effect-lora.rank", "effect-prior.weight", "effect-seed"]
    assert list(plots) == ["front", "parallel", *effects, "prompts", "loss", "lr"]


def test_a_point_per_run_where_its_scores_are(comparison: Comparison, plots: dict[str, Chart]) -> None:
    points = {trace["meta"]["run"]: trace for trace in plots["front"].figure["data"] if "meta" in trace}
    assert set(points) == {entry.id for entry in comparison.finished} and len(points) == 12
    for entry in comparison.finished:
        point = points[entry.id]
        assert point["x"] == [pytest.approx(entry.run.value("clip_t"))]
        assert point["y"] == [pytest.approx(entry.run.value("dino"))]
        assert (point["marker"]["symbol"] == "diamond") == entry.on_front
    colours = plots["front"].figure["layout"]["coloraxis"]
    pres = [entry.run.value("pres") for entry in comparison.finished]
    assert (colours["cmin"], colours["cmax"]) == (pytest.approx(min(pres)), pytest.approx(max(pres)))


def test_means_per_value(comparison: Comparison, plots: dict[str, Chart]) -> None:
    first = plots["effect-prior.weight"].figure["data"][0]
    for level, mean in zip(first["x"], first["y"], strict=True):
        values = [e.run.value("dino") for e in comparison.finished if e.settings["prior.weight"] == level]
        assert len(values) == 6 and mean == pytest.approx(sum(values) / 6)


def test_a_cell_per_prompt_and_run(comparison: Comparison, plots: dict[str, Chart]) -> None:
    first = plots["prompts"].figure["data"][0]
    best = comparison.finished[0].run.report
    assert best is not None
    scores = {row.prompt: row.values["dino"] for row in best.prompts if row.row == "run"}
    assert [row[0] for row in first["z"]] == [pytest.approx(scores[prompt]) for prompt in first["y"]]


def test_a_learning_rate_over_its_steps(plots: dict[str, Chart]) -> None:
    trace = plots["lr"].figure["data"][0]
    assert trace["x"] == list(range(1, 61))
    assert trace["y"] == pytest.approx([1e-3 * (1 - step / 80) for step in trace["x"]], rel=1e-4)


def test_text_is_no_markup_for_plotly() -> None:
    assert plain("<b>$x$ & y") == "&lt;b&gt;&#36;x&#36; &amp; y"
