"""What the environment says of W&B, against the config."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dbexp.config.schema import Config
from dbexp.tracking import session
from tests.sweeps import dbexp_command, tiny


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WANDB_MODE", "offline"), ("WANDB_MODE", "disabled"), ("WANDB_MODE", "dryrun"), ("WANDB_DISABLED", "true")],
)
def test_a_variable_that_keeps_wandb_offline_is_named(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    cfg = Config()
    cfg.tracking.mode = "online"
    (problem,) = session.problems(cfg)
    assert problem.startswith(f"tracking.mode=online: the environment says {variable}={value}; unset {variable}")
    assert session.login_problem() == f"the environment says {variable}={value}; unset {variable}"
    cfg.tracking.mode = "offline"
    assert session.problems(cfg) == []


def test_another_project_than_the_configs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = Config()
    for variable, value in {"WANDB_PROJECT": "theirs", "WANDB_ENTITY": "them"}.items():
        monkeypatch.setenv(variable, value)
    (project,) = session.conflicts(cfg)  # the config names no entity, so the environment's is taken
    assert project == (
        "tracking.project=dbexp: the run goes there, though the environment says WANDB_PROJECT=theirs; for the latter "
        "use tracking.project=theirs"
    )
    cfg.tracking.project, cfg.tracking.entity = "theirs", "us"
    (entity,) = session.conflicts(cfg)
    assert entity.startswith("tracking.entity=us: the run goes there, though the environment says WANDB_ENTITY=them;")
    monkeypatch.setenv("WANDB_SWEEP_ID", "anagents")
    assert session.conflicts(cfg) == []


def test_the_project_of_the_environment_is_named_once_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    words = [*tiny(tmp_path / "store"), "train.steps=2", "tracking.mode=offline", "hydra.sweep.dir=sweep"]
    outcome = dbexp_command(tmp_path, "-m", *words, "lora.rank=2,4")
    assert outcome.status == 0, outcome.err
    assert (outcome.out + outcome.err).count("the environment says WANDB_PROJECT=theirs") == 1
    records = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/tracking/run.json")]
    assert [record["project"] for record in records] == ["dbexp", "dbexp"]


def test_runs_of_a_sweep_below_an_agent_have_ids_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "agentsrun")
    monkeypatch.setenv("WANDB_SWEEP_ID", "agentssweep")
    words = [*tiny(tmp_path / "store"), "train.steps=2", "tracking.mode=offline"]
    outcome = dbexp_command(tmp_path, "-m", *words, "lora.rank=2,4", "hydra.sweep.dir=sweep")
    assert outcome.status == 0, outcome.err
    ids = {json.loads(path.read_text())["id"] for path in (tmp_path / "sweep").glob("*/tracking/run.json")}
    assert len(ids) == 2 and "agentsrun" not in ids
    files = {path.stem.removeprefix("run-") for path in (tmp_path / "sweep").glob("[01]/tracking/wandb/*/run-*.wandb")}
    assert files == ids
