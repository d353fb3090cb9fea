"""Which setting is recommended: not the one that collapsed; ties and the knee; by hand from recommendation.csv."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from statistics import fmean, harmonic_mean

import numpy as np
import pandas
import pytest

import dbexp
from dbexp.compare.gather import compare
from dbexp.compare.statements import statements
from dbexp.compare.statistics import knee
from dbexp.compare.summary import summary
from dbexp.compare.write import ComparisonFiles, write_comparison
from dbexp.core.errors import ConfigError
from dbexp.evaluate.columns import RECOMMEND
from tests.compare import sweeps

TITLES = {"DINO": "dino", "CLIP-T": "clip_t", "PRES": "pres"}
COLLAPSE = {"lora.rank": {"dino": 0.02, "pres": 0.15}, "prior.weight": {"dino": -0.05, "clip_t": 0.015, "pres": -0.3}}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ComparisonFiles:
    """Without prior preservation DINO is higher, and the class has all but become the subject."""
    monkeypatch.setattr(sweeps, "EFFECTS", COLLAPSE)
    return write_comparison([sweeps.sweep(tmp_path / "sweep", side=8)])


def test_the_highest_dino_is_not_recommended_where_the_class_collapsed(files: ComparisonFiles) -> None:
    of = files.comparison.recommendation
    assert files.comparison.objective == RECOMMEND and files.comparison.standings == of.standings
    assert of.settings["prior.weight"] == "1"
    highest = compare([files.csv.parent], "dino").standings[0]
    assert highest.settings == {"lora.rank": "8", "prior.weight": "0"}
    first, *_ = statements(files.comparison)
    assert first.verdict == "recommended" and first.subject == "Recommendation"
    assert f"has {highest.title}: " in first.text and "harmonic mean" in first.basis


def test_by_hand_from_the_file(files: ComparisonFiles) -> None:
    rows = list(csv.DictReader(io.StringIO(files.recommendation.read_text())))
    scores: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        at = {name: float(row[name]) for name in row if name.startswith(("dino", "clip_t", "pres"))}
        shares = (
            (at["dino"] - at["dino_base"]) / (at["dino_real"] - at["dino_base"]),
            (at["clip_t"] - at["clip_t_real"]) / (at["clip_t_base"] - at["clip_t_real"]),
            (at["dino_real"] - at["pres"]) / (at["dino_real"] - at["pres_base"]),
        )
        score = harmonic_mean([min(max(share, 0), 1) for share in shares])
        assert score == pytest.approx(float(row[RECOMMEND]), rel=1e-6)
        scores.setdefault((row["lora.rank"], row["prior.weight"]), []).append(score)
    means = {setting: fmean(values) for setting, values in scores.items()}
    best = max(means, key=means.__getitem__)
    of = files.comparison.recommendation
    assert tuple(of.settings.values()) == best and of.score == pytest.approx(means[best], rel=1e-6)
    assert {(row["lora.rank"], row["prior.weight"]) for row in rows if row["recommended"] == "true"} == {best}
    in_results = {row["job"]: row for row in csv.DictReader(io.StringIO(files.csv.read_text()))}
    assert all(in_results[row["job"]][name] == row[name] for row in rows for name in ("dino", "clip_t", "pres"))
    assert RECOMMEND not in in_results[rows[0]["job"]], "results.csv has what it had"


def test_the_reference_sweep_is_recommended_by_the_formulas_of_the_readme() -> None:
    root = Path(dbexp.__file__).parents[1]
    text = (root / "README.md").read_text(encoding="utf-8").replace("−", "-")
    formulas = dict(re.findall(r"^- (subject gained|prompt kept|class kept) = (.*)$", text, flags=re.MULTILINE))
    columns = {f"{title} of {of}": f"{name}_{of}" for title, name in TITLES.items() for of in ("base", "real")} | TITLES
    runs = pandas.read_csv(root / "multirun" / "reference" / "recommendation.csv")
    shares = []
    for formula in formulas.values():
        for words, column in columns.items():  # "DINO of base" comes before "DINO"
            formula = formula.replace(words, column)
        shares.append(np.clip(eval(formula, {name: runs[name] for name in columns.values() if name in runs}), 0, 1))
    assert len(shares) == 3 and "harmonic mean\n3 / (1/subject + 1/prompt + 1/class)" in text
    by_hand = 3 / sum(1 / share for share in shares)
    assert by_hand.to_numpy() == pytest.approx(runs[RECOMMEND].to_numpy(), rel=1e-6)
    settings = ["lora.rank", "prior.weight"]
    best = by_hand.groupby([runs[name] for name in settings]).mean().idxmax()
    assert {tuple(row) for row in runs[runs["recommended"]][settings].itertuples(index=False)} == {best}


def test_distances_from_it_are_effects_like_any_other(files: ComparisonFiles) -> None:
    of = files.comparison.recommendation
    pictures = dbexp.load_pictures(files.csv.parent, RECOMMEND)
    by_run = pictures.groupby(["lora.rank", "prior.weight", "seed"])["value"].mean()
    for entry in files.comparison.finished:
        at = (int(entry.settings["lora.rank"]), int(entry.settings["prior.weight"]), int(entry.settings["seed"]))
        assert by_run[at] == pytest.approx(entry.run.value(RECOMMEND), rel=1e-6)
    rows = [row for row in csv.DictReader(io.StringIO(files.effects.read_text())) if row["kind"] == "behind"]
    assert [row["to"] for row in rows] == [standing.title for standing in of.standings[1:]]
    assert {row["metric"] for row in rows} == {RECOMMEND}
    told = [float(row["high"]) < 0 for row in rows]
    assert told == [row["significant"] == "true" for row in rows] and any(told)
    tied = {standing.title for standing in of.not_told_apart}
    assert tied == {row["to"] for row, apart in zip(rows, told, strict=True) if not apart}
    assert all(title in statements(files.comparison)[0].text for title in tied)


def test_page_markdown_wandb_and_python_say_the_same(files: ComparisonFiles) -> None:
    of, sweep = files.comparison.recommendation, files.csv.parent
    shown = summary(files.comparison, sweep).recommendation
    assert shown["setting"] == of.first.title if of.first else False
    assert shown["score"] == of.score and json.loads(json.dumps(shown)) == shown
    advice = dbexp.recommend(sweep)
    assert advice.settings == of.settings and advice.score == of.score and advice.rule == of.rule
    for text in (files.page.read_text(), files.markdown.read_text().replace("\\", "")):
        assert f"with recommendation {of.score:.3f}: " in text and "recommendation ↑" in text


def test_with_one_seed_nobody_is_told_apart(tmp_path: Path) -> None:
    comparison = compare([sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "prior.weight": (0, 1)}, side=8)])
    assert len(comparison.recommendation.not_told_apart) == 3
    first, front, *_ = statements(comparison)
    assert "trained once, nothing can be called behind: add seed=1,2,3" in first.text
    assert front.subject == "Pareto front" and "trained once" in front.text


def test_without_a_base_model_it_says_what_is_missing(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "seed": (1, 2)}, side=8)
    for path in tmp_path.glob("*/evaluate/metrics.json"):
        record = json.loads(path.read_text())
        del record["report"]["rows"]["base"]
        path.write_text(json.dumps(record))
    files = write_comparison([tmp_path])
    of = dbexp.recommend(tmp_path)
    assert of.first is None and of.settings == {} and math.isnan(of.score) and of.not_told_apart == ()
    assert files.comparison.objective == "dino"
    best, advice, *_ = statements(files.comparison)
    assert best.subject == "Best by DINO"
    assert advice.text.startswith("none, for it needs samples of the base model (sample.base=true)")
    assert "recommendation ↑" not in files.page.read_text() + files.markdown.read_text()
    assert summary(files.comparison, tmp_path).recommendation == {}


def test_several_objectives_make_the_front(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "prior.weight": (0, 1), "seed": (1, 2)}, side=8)
    comparison = compare([tmp_path], "dino+pres")
    assert comparison.objective == "dino" and comparison.recommendation.axes == ("pres", "dino")
    assert {standing.settings["prior.weight"] for standing in comparison.recommendation.front} == {"0", "1"}
    front = next(each for each in statements(comparison) if each.verdict == "front")
    assert front.text.startswith("in PRES and DINO no setting beats ")
    three = compare([tmp_path], "dino+pres+clip_t").recommendation
    assert three.axes == ("pres", "dino", "clip_t") and three.knee is None
    with pytest.raises(ConfigError, match="objective=beauty: choose one of recommend, dino"):
        compare([tmp_path], "dino+beauty")


def test_a_stated_trade_off_ranks(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "prior.weight": (0, 1), "seed": (1, 2, 3)}, side=8)
    name = "dino-2*pres"
    files = write_comparison([tmp_path], name)
    values = [entry.run.value("dino") - 2 * entry.run.value("pres") for entry in files.comparison.finished]
    assert values == sorted(values, reverse=True)
    first, second = files.comparison.standings[0], files.comparison.standings[-1]
    assert first.settings["prior.weight"] == "1" and second.behind is not None and second.behind.is_significant
    assert second.behind.value == pytest.approx(second.moments[name].mean - first.moments[name].mean, abs=1e-9)
    text = files.markdown.read_text()
    assert "Best by 1 DINO − 2 PRES" in text and "Best by 1 DINO − 2 PRES" in files.page.read_text()


@pytest.mark.parametrize(
    ("points", "number"),
    [
        ([(0, 1), (0.8, 0.9), (1, 0)], 1),
        ([(0, 1), (0.3, 0.9), (0.8, 0.8), (1, 0)], 2),
        ([(0, 10), (80, 9), (100, 0)], 1),  # whatever the units
        ([(0, 1), (0.4, 0.4), (1, 0)], None),  # below the line
        ([(0, 1), (0.5, 0.5), (1, 0)], None),  # on it
        ([(0, 1), (1, 0)], None),
        ([(1, 1)], None),
        ([(1, 1), (1, 1), (1, 1)], None),
    ],
)
def test_the_knee_is_farthest_beyond_the_line_between_the_ends(
    points: list[tuple[float, float]], number: int | None
) -> None:
    assert knee(points) == number
