"""One effect, one interval: the page, the terminal, results.md, effects.csv, W&B and notebooks say the same."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

import dbexp
from dbexp import tracking
from dbexp.compare.comparison import MEASURES
from dbexp.compare.gather import compare
from dbexp.compare.numbers import interval, signed
from dbexp.compare.statements import statements
from dbexp.compare.summary import summary
from dbexp.compare.terminal import show_statements
from dbexp.compare.write import ComparisonFiles, write_comparison
from dbexp.core.errors import ConfigError
from dbexp.evaluate.columns import COLUMNS, RECOMMEND
from tests.compare import sweeps

STEPS = {("lora.rank", "4", "8"), ("prior.weight", "0", "1")}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ComparisonFiles:
    """Two ranks, two weights, three seeds."""
    return write_comparison([sweeps.sweep(tmp_path_factory.mktemp("sweep"), side=8)])


def printed(files: ComparisonFiles, is_terminal: bool = False) -> str:
    """What a pipe gets, or a terminal without colours."""
    buffer = io.StringIO()
    show_statements(files.comparison, Console(file=buffer, width=80, force_terminal=is_terminal, color_system=None))
    return buffer.getvalue()


def plain(text: str) -> str:
    """Without the escapes of markdown and the tags of HTML, spaces as one."""
    return " ".join(re.sub(r"<[^>]*>", " ", text).replace("\\", "").split())


def cells(shown: tracking.Summary) -> list[Mapping[str, object]]:
    return [dict(zip(shown.effect_columns, row, strict=True)) for row in shown.effects]


def test_one_interval_in_six_places(files: ComparisonFiles) -> None:
    sweep = files.csv.parent
    rows = [row for row in csv.DictReader(io.StringIO(files.effects.read_text())) if row["kind"] == "effect"]
    on_wandb = [row for row in cells(summary(files.comparison, sweep)) if row["kind"] == "effect"]
    assert {(row["parameter"], row["from"], row["to"]) for row in rows} == STEPS
    assert len(rows) == len(on_wandb) == len(STEPS) * len(MEASURES)
    page, markdown = plain(files.page.read_text()), plain(files.markdown.read_text())
    pipe, terminal = plain(printed(files)), plain(printed(files, is_terminal=True))
    for row, cell in zip(rows, on_wandb, strict=True):
        metric = row["metric"]
        estimate = dbexp.effect(dbexp.load_pictures(sweep, metric), row["parameter"], row["from"], row["to"])
        numbers = (estimate.value, estimate.low, estimate.high)
        assert [float(row[name]) for name in ("value", "low", "high")] == pytest.approx(numbers, rel=1e-8)
        assert [cell[name] for name in ("value", "low", "high")] == pytest.approx(numbers, rel=1e-8)
        value, ends = signed(metric, estimate.value), interval(metric, estimate.low, estimate.high)
        assert f"{COLUMNS[metric].title} {value} {ends}" in markdown
        assert f"{value} {ends}" in page
        mark = " *" if estimate.is_significant else ""
        assert f"{value}{mark} {ends}" in pipe
        assert f"{COLUMNS[metric].title} {value}{mark} {ends}" in terminal


def test_each_says_what_it_speaks_of(files: ComparisonFiles) -> None:
    scope = "for prompts and training seeds like these (4 prompts, 3 seeds)"
    of_class = "for class images and training seeds like these (8 class images, 3 seeds)"
    pictures = dbexp.load_pictures(files.csv.parent, "dino")
    assert dbexp.effect(pictures, "lora.rank", 4, 8).scope == scope
    for text in (printed(files), files.markdown.read_text(), files.page.read_text()):
        assert text.count(f"{scope}; PRES: 8 class images in place of prompts") == len(STEPS)
        assert f"{scope}, 4 settings compared at once" in text
    scopes = {row["metric"]: row["speaks_of"] for row in cells(summary(files.comparison, files.csv.parent))}
    assert scopes == dict.fromkeys((*MEASURES, RECOMMEND), scope) | {"pres": of_class}
    assert f"better: the interval excludes zero; {of_class}" in files.page.read_text()


def test_wandb_gets_the_sentences_of_results_md(files: ComparisonFiles) -> None:
    shown = summary(files.comparison, files.csv.parent)
    assert [sentence for _, sentence in shown.statements] == [each.sentence for each in statements(files.comparison)]
    for _, sentence in shown.statements:
        assert sentence.partition(": ")[2] in plain(files.markdown.read_text())


def test_with_one_seed_nothing_is_significant_and_more_are_suggested(tmp_path: Path) -> None:
    files = write_comparison([sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "prior.weight": (0, 1)}, side=8)])
    sentences = statements(files.comparison)
    verdicts = {change.verdict for statement in sentences for change in statement.changes}
    assert verdicts == {"once"}
    for statement in sentences:
        assert "seed=1,2,3" in statement.sentence
        assert not re.search(r"significantly|gains|costs|better|worse", statement.sentence + statement.verdict)
    rows = list(csv.DictReader(io.StringIO(files.effects.read_text())))
    assert {row["significant"] for row in rows} == {"false"} and {row["p"] for row in rows} == {""}
    assert {row["speaks_of"] for row in rows} == {
        "on these prompts, for this seed",
        "on these class images, for this seed",
    }
    for text in (printed(files), files.markdown.read_text(), files.page.read_text()):
        assert "on these prompts, for this seed" in text and "seed=1,2,3" in text
    assert "*" not in printed(files).partition("\n\n")[2].replace("; * leaves", "")
    assert not re.search(r'class="change (better|worse)', files.page.read_text())


def test_with_two_seeds_a_reader_sees_what_a_third_would_buy(tmp_path: Path) -> None:
    files = write_comparison([sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "seed": (1, 2)}, side=8)])
    estimate = files.comparison.effects[0].differences["dino"]
    advice = f"a third seed would make DINO ±{estimate.half_width:.3f} about ±{estimate.half_width_with(3):.3f}"
    for text in (printed(files), files.markdown.read_text(), files.page.read_text()):
        assert advice in text
    assert estimate.half_width_with(3) < estimate.half_width / 2


@pytest.fixture(scope="module")
def tilted(tmp_path_factory: pytest.TempPathFactory) -> ComparisonFiles:
    return write_comparison([sweeps.sweep(tmp_path_factory.mktemp("tilted"), side=8, tilt=True)])


def test_an_effect_that_depends_on_another_parameter_is_not_averaged(tilted: ComparisonFiles) -> None:
    rows = [row for row in csv.DictReader(io.StringIO(tilted.effects.read_text())) if row["metric"] == "dino"]
    at = {(row["parameter"], row["where"]): float(row["value"]) for row in rows if row["kind"] == "effect at"}
    assert set(at) == {
        ("lora.rank", "prior.weight=0"),
        ("lora.rank", "prior.weight=1"),
        ("prior.weight", "lora.rank=4"),
        ("prior.weight", "lora.rank=8"),
    }
    assert at["lora.rank", "prior.weight=0"] == pytest.approx(0.002, abs=0.01)
    assert at["lora.rank", "prior.weight=1"] == pytest.approx(-0.048, abs=0.01)
    assert {row["depends_on"] for row in rows if row["kind"] == "effect"} == {"lora.rank", "prior.weight"}
    (statement,) = [each for each in statements(tilted.comparison) if each.subject.startswith("lora.rank")]
    assert statement.verdict.startswith("DINO depends on weight")
    for text in (printed(tilted), tilted.markdown.read_text(), tilted.page.read_text()):
        for where, changes in statement.cases:
            assert f"at {where}" in text
            assert [change.column for change in changes] == ["DINO"] and changes[0].interval in plain(text)
        mean = tilted.comparison.effects[0].differences["dino"]
        assert f"{signed('dino', mean.value)} {interval('dino', mean.low, mean.high)}" not in plain(text)


def test_effects_are_means_over_subjects_that_count_alike(tmp_path: Path) -> None:
    grid = {"dataset.name": ("dog", "cat", "owl"), "lora.rank": (4, 8), "seed": (1, 2)}
    files = write_comparison([sweeps.sweep(tmp_path, grid, side=8)], "dino")
    assert [(standing.title, len(standing.entries)) for standing in files.comparison.standings] in (
        [("rank=8", 6), ("rank=4", 6)],
        [("rank=4", 6), ("rank=8", 6)],
    )
    (effect,) = files.comparison.effects
    assert effect.differences["dino"].counts.subjects == 3
    assert "for subjects, prompts and training seeds like these (3 subjects, 4 prompts, 2 seeds)" in printed(files)
    (statement,) = [each for each in statements(files.comparison) if each.subject == "dataset.name"]
    values: dict[str, list[float]] = {}
    for entry in files.comparison.finished:
        values.setdefault(entry.settings["dataset.name"], []).append(entry.run.value("dino"))
    means = sorted((sum(each) / len(each), name) for name, each in values.items())
    low, high = (f"{mean:.3f} ({name})" for mean, name in (means[0], means[-1]))
    assert f"Mean DINO from {low} to {high}" in statement.text


def test_a_subject_without_a_recommendation_is_no_end_of_their_range(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"dataset.name": ("dog", "cat", "owl")}, side=8)
    path = tmp_path / "1" / "evaluate" / "metrics.json"
    record = json.loads(path.read_text())
    del record["report"]["rows"]["base"]  # of the cat
    path.write_text(json.dumps(record))
    text = next(each.text for each in statements(compare([tmp_path])) if each.subject == "dataset.name")
    assert "Mean recommendation from" in text and "(dog)" in text and "(owl)" in text and "–" not in text


def test_pictures_csv_has_every_score_and_its_prompt(files: ComparisonFiles) -> None:
    rows = list(csv.DictReader(io.StringIO(files.pictures.read_text())))
    assert list(rows[0])[:7] == ["job", "subject", "lora.rank", "prior.weight", "seed", "prompt", "image"]
    for entry in files.comparison.finished:
        assert entry.run.report is not None
        of_run = [row for row in rows if row["job"] == entry.id]
        assert {(row["lora.rank"], row["prior.weight"], row["seed"]) for row in of_run} == {
            tuple(entry.settings.values())
        }
        scores = {(row["prompt"], row["image"]): row for row in of_run}
        for image in entry.run.report.images:
            if image.row == "run":
                assert float(scores[image.prompt, str(image.index)]["dino"]) == pytest.approx(image.values["dino"])
        for image in entry.run.report.class_images:
            if image.row == "run":
                row = scores[f"class image {image.index}", "0"]
                assert float(row["pres"]) == pytest.approx(image.values["pres"]) and row["dino"] == ""
        for prompt in entry.run.report.prompts:
            if prompt.row == "run":
                assert float(scores[prompt.prompt, "0"]["div"]) == pytest.approx(prompt.values["div"])
                assert scores[prompt.prompt, "1"]["div"] == ""


def test_load_pictures(files: ComparisonFiles, tmp_path: Path) -> None:
    table = dbexp.load_pictures(files.csv.parent)
    assert len(table) == 12 * (4 * 2 + 8) and math.isnan(table["dino"].iloc[-1])
    of_class = dbexp.load_pictures(files.csv.parent, "pres")
    assert list(of_class) == ["subject", "lora.rank", "prior.weight", "seed", "prompt", "image", "value"]
    assert len(of_class) == 12 * 8
    with pytest.raises(ConfigError, match="metric=dinoo: no picture has it; choose one of dino, clip_i"):
        dbexp.load_pictures(files.csv.parent, "dinoo")
    sweeps.failed(tmp_path / "0", {"lora.rank": 4}, "no")
    with pytest.raises(ConfigError, match="no run has scores of pictures"):
        dbexp.load_pictures(tmp_path)


def test_other_noise_of_samples_is_another_picture_and_no_other_training(tmp_path: Path) -> None:
    files = write_comparison([sweeps.sweep(tmp_path, {"lora.rank": (4, 8), "seeds.sample": (1, 2)}, side=8)])
    pictures = dbexp.load_pictures(tmp_path, "dino")
    assert set(pictures["seed"]) == {42} and len(set(pictures["image"])) == 4
    estimate = files.comparison.effects[0].differences["dino"]
    assert (estimate.counts.seeds, estimate.counts.runs, estimate.counts.pictures) == (1, 1, 16)
    assert not estimate.is_significant
