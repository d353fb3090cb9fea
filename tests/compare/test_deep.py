"""Runs deeper than one level below their sweep, as by `hydra.sweep.subdir=${dataset.name}/${hydra.job.num}`."""

from __future__ import annotations

import csv
import io
import re
import urllib.parse
from pathlib import Path

import pytest

import dbexp
from dbexp.compare.results import write_results
from dbexp.compare.write import write_comparison
from dbexp.runs.names import titles
from dbexp.runs.record import load, open_runs, scan
from tests import run_folders
from tests.compare import sweeps

PLACES = ("dog/0", "cat/0", "lora.rank=4,dataset.path=/a/b/1", "train/x", "\u00b2")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Five runs at all depths, one of them below a name that a stage has too; a link to a run; a sweep inside."""
    flat = sweeps.sweep(tmp_path / "flat", {"lora.rank": (4, 8, 16, 32, 64)}, side=8, each=1)
    folder = tmp_path / "sweep"
    for number, place in enumerate(PLACES):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (flat / str(number)).rename(folder / place)
    other = sweeps.sweep(folder / "another", {"lora.rank": (2,)}, side=8, each=1)
    (other / "multirun.yaml").write_text("")
    (folder / "link").symlink_to(folder / "dog" / "0")
    return folder


def test_every_run_is_found_once(sweep: Path) -> None:
    for runs in (load(sweep), scan(sweep)):
        assert sorted(run.folder.relative_to(sweep).as_posix() for run in runs) == sorted(PLACES)


def test_the_best_is_found(tmp_path: Path) -> None:
    for number, dino in enumerate((0.5, 0.7, 0.6)):
        run_folders.make(tmp_path / "sweep" / "dog" / f"rank={number}", columns={"dino": dino})
    (run,) = open_runs([str(tmp_path / "sweep")], None)
    assert run.folder == tmp_path / "sweep" / "dog" / "rank=1"


def test_tables_name_each(sweep: Path) -> None:
    write_results(sweep, "dino")
    rows = list(csv.DictReader(io.StringIO((sweep / "results.csv").read_text())))
    assert sorted(row["job"] for row in rows) == sorted(PLACES)
    assert {row["job"]: row["lora.rank"] for row in rows}["cat/0"] == "8"
    table = dbexp.load_results(sweep)
    assert dict(zip(table["job"], table["folder"], strict=True)) == {name: str(sweep / name) for name in PLACES}
    assert titles({run.folder: run.overrides for run in load(sweep)})[sweep / "dog" / "0"] == "dog/0: rank=4"


def test_pages_link_to_pictures_that_are_there(sweep: Path) -> None:
    files = write_comparison([sweep])
    assert {entry.id for entry in files.comparison.entries} == set(PLACES)
    links = {urllib.parse.unquote(link) for link in re.findall(r'"file": ?"([^"]+)"', files.page.read_text())}
    assert len(links) > 20 and all((sweep / link).is_file() for link in links)


def test_a_folder_of_sweeps_is_no_sweep(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path / "date" / "time", {"lora.rank": (2,)}, side=8, each=1)
    (tmp_path / "date" / "time" / "multirun.yaml").write_text("")
    assert scan(tmp_path) == [] and len(scan(tmp_path / "date" / "time")) == 1
