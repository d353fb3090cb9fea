"""What runs cost: the same numbers in costs.csv, on a terminal, in results.md, on the page and in W&B."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dbexp.compare.costs import COSTS, duration, words
from dbexp.compare.page.cost_chart import cost_chart
from dbexp.compare.summary import summary
from dbexp.compare.terminal import show_statements
from dbexp.compare.write import ComparisonFiles, write_comparison
from dbexp.runs.costs import NAMES, Costs, costs_of
from dbexp.tracking import content
from tests.compare import sweeps


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ComparisonFiles:
    return write_comparison([sweeps.sweep(tmp_path_factory.mktemp("sweep"), side=8)])


def printed(files: ComparisonFiles) -> str:
    buffer = io.StringIO()
    show_statements(files.comparison, Console(file=buffer, width=200))
    return buffer.getvalue()


def test_a_row_per_run(files: ComparisonFiles) -> None:
    rows = list(csv.DictReader(io.StringIO(files.costs.read_text())))
    assert files.costs.name == COSTS and list(rows[0]) == ["job", "lora.rank", "prior.weight", "seed", *NAMES]
    assert [row["job"] for row in rows] == [entry.id for entry in files.comparison.finished]
    for row in rows:
        rank = int(row["lora.rank"])
        assert float(row["train_seconds"]) == 2.5 * rank and row["train_steps"] == "60"
        assert float(row["train_memory_mib"]) == 1200 / 4 and row["lanes"] == "4" and row["memory_of"] == "resident"
        assert (float(row["sample_seconds"]), row["sample_images"]) == (30.25, "16")
        assert float(row["evaluate_seconds"]) == 200 and float(row["evaluate_memory_mib"]) == 900
        assert (int(row["parameters"]), int(row["lora_bytes"])) == (1000 * rank, 4096 * rank)


def test_everywhere_in_the_same_words(files: ComparisonFiles) -> None:
    four = ["≈10 s", "30 s", "3 min", "≈314.6 MB", "4,000", "16.4 kB"]
    assert words([entry.run.costs for entry in files.comparison.finished if entry.settings["lora.rank"] == "4"]) == four
    shown = summary(files.comparison, files.csv.parent)
    assert [row[1:] for row in shown.costs if row[0] == "rank=4 weight=0"] == [four]
    page = files.page.read_text()
    for cell in four:
        assert cell in printed(files) and f"| {cell} |" in files.markdown.read_text()
        assert f'<td class="number">{cell}</td>' in page
    for text in (printed(files), files.markdown.read_text(), page):
        assert "≈: trained in a pack" in text


def test_quality_against_cost(files: ComparisonFiles) -> None:
    chart = cost_chart(files.comparison)
    assert chart is not None and list(chart.choices) == ["training, seconds", "trained parameters", "LoRA file, bytes"]
    seconds = chart.figure["data"][0]
    assert set(seconds["x"]) == {10, 20} and len(seconds["y"]) == 4
    means = {s.title: s.moments[files.comparison.objective].mean for s in files.comparison.standings}
    assert seconds["y"] == pytest.approx(list(means.values()))


def test_a_share_has_its_name_in_wandb() -> None:
    alone = Costs(train_seconds=2.0, lanes=1, parameters=5, memory_of="cuda")
    assert content.costs(alone) == {"cost/train_seconds": 2.0, "cost/lanes": 1, "cost/parameters": 5}
    packed = Costs(train_seconds=2.0, train_memory_mib=3.0, sample_seconds=1.0, lanes=2)
    names = {"cost/train_seconds_share", "cost/train_memory_mib_share", "cost/sample_seconds", "cost/lanes"}
    assert set(content.costs(packed)) == names
    assert "≈" not in "".join(words([alone])) and words([packed])[0] == "≈2.0 s"


def test_records_without_costs_have_none(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, side=8)
    for path in tmp_path.glob("*/evaluate/metrics.json"):
        record = json.loads(path.read_text())
        record["train"] = {"parameters": {"unet": 7}, "seconds": 3.0, "seconds_cover_steps": 60}  # of the whole pack
        del record["sample"], record["lora_bytes"], record["report"]["cost"]
        path.write_text(json.dumps(record))
    files = write_comparison([tmp_path])
    (row, _) = csv.DictReader(io.StringIO(files.costs.read_text()))
    assert {name: row[name] for name in NAMES if row[name]} == {"train_steps": "60", "parameters": "7"}
    assert cost_chart(files.comparison) is None


@pytest.mark.parametrize(
    "record",
    [
        {"train": {"seconds_share": "1"}},
        {"train": {"lanes": 0}},
        {"train": {"memory_of": ["x"]}},
        {"sample": {"images": 1.5}},
        {"sample": {"seconds": float("inf")}},
        {"lora_bytes": True},
    ],
)
def test_what_is_no_cost_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="cost"):
        costs_of(record, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(float("nan"), "–"), (1.25, "1.2 s"), (99.6, "100 s"), (121, "2 min"), (7260, "2 h 01"), (3600, "60 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
