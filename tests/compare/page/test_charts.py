"""Figures hold the numbers of the runs."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from dbexp.compare.comparison import Comparison
from dbexp.compare.gather import compare
from dbexp.compare.page.charts import charts
from dbexp.compare.page.curves import smooth
from dbexp.compare.page.figure import Chart, plain, styles_of
from tests.compare import sweeps


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare([sweeps.sweep(tmp_path_factory.mktemp("sweep"), side=8)])


@pytest.fixture(scope="module")
def plots(comparison: Comparison) -> dict[str, Chart]:
    return {chart.key: chart for chart in charts(comparison)}


def test_every_chart_is_there(plots: dict[str, Chart]) -> None:
    effects = ["effect-lora.rank", "effect-prior.weight", "effect-seed"]
    assert list(plots) == ["front", "cost", "parallel", *effects, "prompts", "loss", "lr"]


def test_a_small_point_per_run_and_a_large_one_per_setting(comparison: Comparison, plots: dict[str, Chart]) -> None:
    traces = [trace for trace in plots["front"].figure["data"] if "meta" in trace]
    points = {trace["meta"]["run"]: trace for trace in traces if "run" in trace["meta"]}
    assert set(points) == {entry.id for entry in comparison.finished} and len(points) == 12
    for entry in comparison.finished:
        point = points[entry.id]
        assert point["x"] == [pytest.approx(entry.run.value("clip_t"))]
        assert point["y"] == [pytest.approx(entry.run.value("dino"))]
    settings = {tuple(trace["meta"]["runs"]): trace for trace in traces if "runs" in trace["meta"]}
    assert len(settings) == 4
    means = {key: (trace["x"][0], trace["y"][0]) for key, trace in settings.items()}
    for standing in comparison.standings:
        key = tuple(entry.id for entry in standing.entries)
        assert means[key] == pytest.approx((standing.moments["clip_t"].mean, standing.moments["dino"].mean), abs=1e-5)
        beaten = any(other[0] > means[key][0] and other[1] > means[key][1] for other in means.values())
        assert (settings[key]["marker"]["symbol"] == "diamond") == (not beaten)
        assert settings[key]["marker"]["size"] > 2 * points[key[0]]["marker"]["size"]
    colours = plots["front"].figure["layout"]["coloraxis"]
    pres = [entry.run.value("pres") for entry in comparison.finished]
    assert (colours["cmin"], colours["cmax"]) == (pytest.approx(min(pres)), pytest.approx(max(pres)))


def test_without_seeds_every_run_has_its_own_point(tmp_path: Path) -> None:
    comparison = compare([sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, side=8)])
    front = next(chart for chart in charts(comparison) if chart.key == "front")
    points = {trace["meta"]["run"]: trace for trace in front.figure["data"] if "meta" in trace}
    for entry in comparison.finished:
        assert (points[entry.id]["marker"]["symbol"] == "diamond") == entry.on_front


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


def test_one_line_for_a_learning_rate_that_all_share(comparison: Comparison, plots: dict[str, Chart]) -> None:
    (trace,) = plots["lr"].figure["data"]
    assert trace["x"] == list(range(1, 61))
    assert trace["y"] == pytest.approx([1e-3 * (1 - step / 80) for step in trace["x"]], rel=1e-4)
    assert set(trace["meta"]["runs"]) == {entry.id for entry in comparison.finished}
    assert plots["lr"].figure["layout"]["yaxis"]["rangemode"] == "tozero"


def test_losses_are_smooth_lines_over_what_they_are_made_from(comparison: Comparison, plots: dict[str, Chart]) -> None:
    traces, choices = plots["loss"].figure["data"], plots["loss"].choices
    assert len(choices["whole loss"]) == 2 * len(comparison.finished)
    thin, thick = (traces[position] for position in choices["whole loss"][:2])
    place = choices["whole loss"][0]
    assert thin["opacity"] < 1 and thick["meta"] == thin["meta"] | {"smooths": place}, "a reader may smooth it anew"
    assert len(thin["y"]) == len(thick["y"]) == 60
    assert thick["y"][30] == pytest.approx(sum(thin["y"][23:38]) / 15, rel=1e-3)
    assert statistics.stdev(thick["y"]) <= statistics.stdev(thin["y"])


def test_seeds_of_a_setting_look_alike(comparison: Comparison, plots: dict[str, Chart]) -> None:
    look = styles_of(comparison)
    assert len({look[entry.id] for entry in comparison.entries}) == len(comparison.standings) == 4
    lines = [trace for trace in plots["loss"].figure["data"] if "smooths" in trace["meta"]]
    for standing in comparison.standings:
        (style,) = {look[entry.id] for entry in standing.entries}
        members = [line for line in lines if line["meta"]["run"] in {entry.id for entry in standing.entries}]
        assert {(line["line"]["dash"], line["line"]["color"]) for line in members} == {style}
        assert {line["name"] for line in members} == {standing.title}


def test_points_know_the_columns_that_axes_may_show(comparison: Comparison, plots: dict[str, Chart]) -> None:
    front = plots["front"]
    assert list(front.axes)[:2] == ["clip_t", "dino"] and {"clip_i", "pres", "div"} < set(front.axes)
    points = {t["meta"]["run"]: t for t in front.figure["data"] if "run" in t.get("meta", {})}
    for entry in comparison.finished:
        values = points[entry.id]["meta"]["values"]
        assert set(values) == set(front.axes)
        assert all(values[column] == pytest.approx(entry.run.value(column)) for column in values)


def test_a_moving_mean_keeps_its_ends() -> None:
    assert smooth([0.0, 3.0, 6.0, 3.0], 3) == [1.5, 3.0, 4.0, 4.5]


def test_lines_through_one_value_do_not_hide_each_other(comparison: Comparison, plots: dict[str, Chart]) -> None:
    (trace,) = plots["parallel"].figure["data"]
    rank = trace["dimensions"][0]
    assert len(set(rank["values"])) == len(comparison.finished)
    assert {round(value) for value in rank["values"]} == set(rank["tickvals"])
    assert trace["meta"]["each"] == [entry.id for entry in comparison.finished]


def test_text_is_no_markup_for_plotly() -> None:
    assert plain("<b>$x$ & y") == "&lt;b&gt;&#36;x&#36; &amp; y"
