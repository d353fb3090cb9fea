"""Runs found again from their folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dbexp.config.values import plain
from dbexp.core.errors import ConfigError
from dbexp.core.hashing import file_hash
from dbexp.runs.record import open_runs
from tests import run_folders


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three finished runs and a failed one; nothing in it is to be changed."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, (dino, pres) in enumerate(((0.5, 0.3), (0.7, 0.6), (0.6, 0.1))):
        columns = {"dino": dino, "pres": pres}
        run_folders.make(folder / str(number), f"lora.rank={number + 2}", columns=columns)
    failed = {"name": "x", "overrides": [], "status": "failed", "error": "no", "config": {}}
    (folder / "3").mkdir()
    (folder / "3" / "result.json").write_text(json.dumps(failed))
    return folder


def test_a_run_is_rebuilt_from_its_folder(sweep: Path) -> None:
    (run,) = open_runs([str(sweep / "0")], None)
    assert run.name == "lora.rank=2"
    assert run.config == run_folders.config()
    assert run.lora_hash == file_hash(sweep / "0" / "train" / "lora.safetensors")
    assert run.chosen is None


@pytest.mark.parametrize(
    ("objective", "number", "why"),
    [
        (None, "1", "the best dino of 0.700 among 3 runs"),
        ("pres", "2", "the best pres of 0.100 among 3 runs"),
    ],
)
def test_a_sweep_stands_for_its_best_run(sweep: Path, objective: str | None, number: str, why: str) -> None:
    (run,) = open_runs([str(sweep)], objective)
    assert run.folder == sweep / number
    assert run.chosen == why


@pytest.mark.parametrize("objective", [["pres", "dino"], "pres,dino"])  # as records have it, and as older ones had it
def test_the_sweeps_own_objective_counts(sweep: Path, tmp_path: Path, objective: object) -> None:
    shutil.copytree(sweep, tmp_path / "sweep")
    for path in (tmp_path / "sweep").glob("*/evaluate/metrics.json"):
        record = json.loads(path.read_text())
        record["config"]["objective"] = objective
        path.write_text(json.dumps(record))
    (run,) = open_runs([str(tmp_path / "sweep")], None)
    assert run.folder.name == "2"


def test_a_run_without_a_record_is_rebuilt_from_hydras(sweep: Path, tmp_path: Path) -> None:
    folder = tmp_path / "0"
    shutil.copytree(sweep / "0", folder)
    shutil.rmtree(folder / "evaluate")
    (folder / "result.json").unlink()
    composed = plain(run_folders.config())
    composed["sample"]["resolution"] = "${model.resolution}"
    (folder / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(composed), folder / ".hydra" / "config.yaml")
    (run,) = open_runs([str(folder)], None)
    assert run.config == run_folders.config()
    assert run.name == "0"


def test_every_folders_problem_is_told(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare"
    shutil.copytree(sweep / "0", bare)
    shutil.rmtree(bare / "evaluate")
    strange = tmp_path / "strange"
    shutil.copytree(sweep / "0", strange)
    (strange / "evaluate" / "metrics.json").write_text('{"config": {"lora": {"rnak": 3}}}')
    failed = tmp_path / "failed"
    shutil.copytree(sweep / "3", failed / "3")
    folders = [tmp_path / "nowhere", tmp_path / "empty", sweep / "3", bare, strange, failed]
    with pytest.raises(ConfigError) as caught:
        open_runs([str(folder) for folder in folders], None)
    says = [
        "there is no such folder",
        "holds neither a run nor a sweep",
        "holds no train/lora.safetensors",
        "holds neither evaluate/metrics.json nor .hydra/config.yaml",
        "is another version's (lora.rnak: there is no such parameter",
        "none of its 1 runs is finished",
    ]
    for folder, phrase, problem in zip(folders, says, caught.value.problems, strict=True):
        assert problem.startswith(f"run={folder}: ")
        assert phrase in problem
