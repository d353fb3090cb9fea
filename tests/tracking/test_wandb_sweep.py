"""A W&B Sweep that drives dbexp: the commands that its agents run are commands of dbexp."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from dbexp.config.groups import conf_dir
from dbexp.config.schema import Config
from dbexp.evaluate.columns import COLUMNS
from tests.tracking.runs import ROOT, environment, inspect, run_of

SWEEP: dict[str, Any] = yaml.safe_load((conf_dir() / "wandb_sweep.yaml").read_text(encoding="utf-8"))


def ends(parameter: dict[str, Any]) -> list[Any]:
    """The values of a parameter, or the ends of its range."""
    if "value" in parameter:
        return [parameter["value"]]
    return list(parameter.get("values") or (parameter["min"], parameter["max"]))


def test_what_agents_run_passes_the_check(checked: Callable[..., Config]) -> None:
    names = list(SWEEP["parameters"])
    tried = set()
    for values in product(*(ends(SWEEP["parameters"][name]) for name in names)):
        chosen = {name: {"value": value} for name, value in zip(names, values, strict=True)}
        words = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
        cfg = checked("tracking=online", *words)
        assert (cfg.tracking.mode, cfg.model.name) == ("online", "sd15")
        tried.add((cfg.lora.rank, cfg.train.lr, cfg.prior.weight))
    assert len(tried) == 4 * 2 * 2
    assert SWEEP["command"] == ["${env}", "dbexp", "tracking=online", "${args_no_hyphens}"]


def test_what_it_optimises_is_logged_under_that_name_and_in_the_right_direction() -> None:
    section, _, column = SWEEP["metric"]["name"].partition("/")
    assert section == "metrics"
    assert {"higher": "maximize", "lower": "minimize"}[COLUMNS[column].better] == SWEEP["metric"]["goal"]


JOB = """
import sys
from pathlib import Path
from dbexp import tracking
from tests.tracking.runs import config

with tracking.start(config(), folder=Path(sys.argv[1]), name="job", group=None):
    pass
print(tracking.records.Records(Path(sys.argv[1])).run().id)
"""


@pytest.mark.slow
def test_a_job_of_an_agent_is_the_run_that_the_agent_began(tmp_path: Path) -> None:
    env = environment(tmp_path, WANDB_SWEEP_ID="abcdefgh", WANDB_RUN_ID="chosen12", WANDB_PROJECT="theirs")
    command = [sys.executable, "-c", JOB, str(tmp_path / "run")]
    finished = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    (records,) = inspect(tmp_path / "run")
    assert run_of(records)["run_id"] == finished.stdout.strip() == "chosen12"
    assert run_of(records)["sweep_id"] == "abcdefgh"
