"""The table over subjects: means that count subjects alike, their intervals, references, published rows."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import t

from dbexp.compare.benchmark import BENCHMARK
from dbexp.compare.gather import compare
from dbexp.compare.published import PAPER_ROWS, REFERENCE_ROWS, published
from dbexp.compare.terminal import show_statements
from dbexp.compare.write import ComparisonFiles, write_comparison
from dbexp.evaluate.columns import PAPER
from tests.compare import sweeps

GRID: dict[str, tuple[Any, ...]] = {"dataset.name": ("dog", "cat", "owl"), "prior.weight": (0, 1), "seed": (1, 2)}


def without_label(sweep: Path, experiment: str | Mapping[str, str]) -> Path:
    """The runs of a preset on a real model; of several, by the numbers of the runs."""
    for path in sweep.glob("*/evaluate/metrics.json"):
        record = json.loads(path.read_text())
        record["report"]["label"] = None
        number = path.parents[1].name
        record["config"]["experiment"] = experiment if isinstance(experiment, str) else experiment[number]
        path.write_text(json.dumps(record))
    return sweep


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ComparisonFiles:
    folder = sweeps.sweep(tmp_path_factory.mktemp("sweep"), GRID, side=8)
    return write_comparison([without_label(folder, "benchmark/dreambooth")], "dino")


def rows_of(files: ComparisonFiles, kind: str) -> list[dict[str, str]]:
    text = (files.csv.parent / BENCHMARK).read_text()
    return [row for row in csv.DictReader(io.StringIO(text)) if row["kind"] == kind]


def test_a_method_is_the_mean_of_its_subjects_with_their_interval(files: ComparisonFiles) -> None:
    values: dict[tuple[str, str], list[float]] = {}
    for entry in files.comparison.finished:
        of = (entry.settings["prior.weight"], entry.settings["dataset.name"])
        values.setdefault(of, []).append(entry.run.value("dino"))
    rows = {row["title"]: row for row in rows_of(files, "mean")}
    assert set(rows) == {"weight=0", "weight=1"}
    for weight in ("0", "1"):
        subjects = [np.mean(values[weight, name]) for name in GRID["dataset.name"]]
        row = rows[f"weight={weight}"]
        assert float(row["dino"]) == pytest.approx(np.mean(subjects), rel=1e-6)
        half = (float(row["dino_high"]) - float(row["dino_low"])) / 2
        # subjects are the rows of the table, and set the least width: others' prompts are the same ones
        assert half >= t.ppf(0.975, 2) * np.std(subjects, ddof=1) / 3**0.5 * (1 - 1e-6)
        assert (
            row["speaks_of"] == "for subjects, prompts and training seeds like these (3 subjects, 4 prompts, 2 seeds)"
        )
        assert float(row["pres_low"]) < float(row["pres"]) < float(row["pres_high"])


def test_a_row_per_subject(files: ComparisonFiles) -> None:
    rows = rows_of(files, "subject")
    assert {(row["title"], row["subject"]) for row in rows} == {
        (f"weight={weight}", name) for weight, name in product((0, 1), GRID["dataset.name"])
    }
    for row in rows:
        runs = [
            entry.run.value("clip_t")
            for entry in files.comparison.finished
            if (f"weight={entry.settings['prior.weight']}", entry.settings["dataset.name"])
            == (row["title"], row["subject"])
        ]
        assert len(runs) == 2 and float(row["clip_t"]) == pytest.approx(np.mean(runs), rel=1e-6)


def test_references_are_means_over_subjects(files: ComparisonFiles) -> None:
    base, real = rows_of(files, "reference")
    assert (base["title"], real["title"]) == ("base model", "real images")
    assert (float(real["dino"]), float(real["clip_i"]), real["clip_t"]) == (0.82, 0.9, "")
    bases = [entry.run.report.rows["base"]["dino"].value for entry in files.comparison.finished if entry.run.report]
    assert float(base["dino"]) == pytest.approx(np.mean(bases), rel=1e-6)


def test_published_rows_stand_beside_and_say_whose_they_are(files: ComparisonFiles) -> None:
    rows = {row["title"]: row for row in rows_of(files, "published")}
    assert float(rows["DreamBooth, Stable Diffusion"]["dino"]) == 0.668
    assert float(rows["DreamBooth, Imagen, with prior preservation"]["pres"]) == 0.493
    assert rows["real images"]["clip_t"] == "" and "table 1 (30 subjects)" in rows["real images"]["source"]
    assert all(row["dino_low"] == "" for row in rows.values())
    custom = rows.pop("Custom Diffusion, Stable Diffusion")
    assert [float(custom[name]) for name in ("dino", "clip_i", "clip_t")] == [0.643, 0.79, 0.305]
    assert "arXiv 2307.11410, table 1" in custom["source"] and "networks as that paper chose them" in custom["source"]
    assert all("DINO ViT-S/16, CLIP ViT-B/32" in row["source"] for row in rows.values())
    buffer = io.StringIO()
    show_statements(files.comparison, Console(file=buffer, width=200))
    page = files.page.read_text()
    assert "*DreamBooth, Stable Diffusion (published)*" in files.markdown.read_text()
    assert "DreamBooth, Stable Diffusion, published" in buffer.getvalue()
    assert re.search(r'<tr class="published">\s*<th scope="row">DreamBooth, Stable Diffusion <span class="label"', page)
    for text in (files.markdown.read_text(), buffer.getvalue(), page):
        assert "arXiv 2208.12242, table 1" in text


def test_labelled_numbers_are_held_against_nobody(tmp_path: Path) -> None:
    comparison = compare([sweeps.sweep(tmp_path, GRID, side=8)])
    assert comparison.benchmark and {row.kind for row in comparison.benchmark} == {"reference", "mean", "subject"}
    assert published(["benchmark/dreambooth"], is_labelled=True) == ()


def test_rows_of_the_reference_tables_stand_beside_runs_that_repeat_them(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (16, 32)}, side=8)
    experiments = {"0": "reference/diffusers/with_prior", "1": "reference/diffusers/rank32"}
    files = write_comparison([without_label(tmp_path, experiments)])
    rows = {row["title"]: row for row in rows_of(files, "published")}
    assert set(rows) == {"diffusers/with_prior", "diffusers/rank32"}
    assert float(rows["diffusers/rank32"]["dino"]) == pytest.approx(0.4840748)
    assert len(rows_of(files, "mean")) == 2 and rows_of(files, "subject") == []


def test_one_subject_of_no_preset_has_no_benchmark(tmp_path: Path) -> None:
    files = write_comparison([sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, side=8)])
    assert files.comparison.benchmark == () and not (tmp_path / BENCHMARK).exists()
    assert "Benchmark" not in files.page.read_text() + files.markdown.read_text()


def test_published_rows_are_complete() -> None:
    assert len(REFERENCE_ROWS) == 7 and all(set(row.columns) == set(PAPER) for row in REFERENCE_ROWS)
    assert len(PAPER_ROWS) == 7 and all(row.source and row.backbones for row in (*PAPER_ROWS, *REFERENCE_ROWS))
    assert published(["reference/cloneofsimo/with_prior_2000"], is_labelled=False)[0].columns["pres"] == 0.19029397
    assert published(["recipe/diffusers"], is_labelled=False) == ()
