"""The head of the page says what was asked, by which command, and what was the same in all runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dbexp.compare.gather import compare
from dbexp.compare.page.page import page
from dbexp.compare.page.question import Question, question
from tests.compare import sweeps

COMMAND = "dbexp -m lora.rank=4,8 prior.weight=0,1 seed=1,2,3 'sample.prompts=[a {token}]'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = sweeps.sweep(tmp_path_factory.mktemp("sweep"), side=8)
    words = ["lora.rank=4,8", "prior.weight=0,1", "seed=1,2,3", "sample.prompts=[a {token}]"]
    record = {"hydra": {"overrides": {"task": [*words, "store=/home/somebody/store", "tracking=online"]}}}
    (folder / "multirun.yaml").write_text(yaml.safe_dump(record))
    return folder


@pytest.fixture(scope="module")
def head(folder: Path) -> Question:
    return question(compare([folder]))


def test_the_title_is_what_differs(head: Question) -> None:
    assert head.title == "rank 4, 8 × weight 0, 1"


def test_runs_are_counted_by_settings_and_seeds(head: Question) -> None:
    assert head.extent.startswith("12 runs: 4 settings × 3 seeds of dog on ")


def test_the_command_without_where_files_go(head: Question) -> None:
    assert head.commands == (COMMAND,)


def test_what_is_the_same_leaves_out_what_differs(head: Question) -> None:
    assert float(head.fixed["train.lr"]) > 0
    assert not {"lora.rank", "prior.weight"} & set(head.fixed)


def test_versions_and_days_are_those_on_record(folder: Path) -> None:
    for number, day in ((0, "2026-11-27T23:00:00+00:00"), (1, "2026-11-28T01:00:00+00:00")):
        file = folder / str(number) / "evaluate" / "metrics.json"
        record = json.loads(file.read_text())
        packages = {"torch": f"2.1{number}.0", "diffusers": "0.42.1"}
        record["provenance"] = {"dbexp": "0.1.0", "packages": packages, "device": {"name": "H100"}, "time": day}
        file.write_text(json.dumps(record))
    made = question(compare([folder])).made
    assert made == ("dbexp 0.1.0, torch 2.10.0 and 2.11.0, diffusers 0.42.1", "H100", "2026-11-27 to 2026-11-28")


@pytest.mark.parametrize("record", ["", "[", "hydra: 3", "hydra: {overrides: {task: {a: 1}}}", "a: &a [*a]", "- 3"])
def test_a_record_that_is_none_gives_no_command(record: str, tmp_path: Path) -> None:
    folder = sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, side=8)
    (folder / "multirun.yaml").write_text(record)
    assert question(compare([folder])).commands == ()


def test_odd_provenance_is_no_reason_to_fail(tmp_path: Path) -> None:
    folder = sweeps.sweep(tmp_path, {"lora.rank": (4, 8)}, side=8)
    file = folder / "0" / "evaluate" / "metrics.json"
    record = json.loads(file.read_text()) | {"provenance": {"dbexp": 3, "packages": [1], "device": "x", "time": "soon"}}
    file.write_text(json.dumps(record))
    assert question(compare([folder])).made == ()


def test_one_run_is_named_by_its_subject(tmp_path: Path) -> None:
    comparison = compare([sweeps.sweep(tmp_path, {"lora.rank": (4,)}, side=8)])
    assert question(comparison).title == "dog"
    assert "<h1>dog</h1>" in page(comparison, tmp_path)


def test_a_page_of_a_sweep_that_runs_reads_itself_anew(folder: Path) -> None:
    comparison = compare([folder])
    assert "data-running" in page(comparison, folder, is_running=True).split("<head>")[0]
    assert "data-running" not in page(comparison, folder).split("<head>")[0]
