"""Losses of a sweep's jobs on the dashboard while their pack trains, against a small server on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.sweeps import tiny
from tests.tracking.runs import KEY, ROOT, environment
from tests.tracking.server import serving


def test_jobs_tell_their_losses_while_they_train_together_and_go_on_with_the_same_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dbexp", "-m", *tiny(tmp_path / "store"), "tracking.mode=online"]
    command += ["lora.rank=2,4", "sample.base=false", f"hydra.sweep.dir={tmp_path}/day/sweep"]
    with serving() as service:
        env = environment(tmp_path, WANDB_BASE_URL=service.url, WANDB_API_KEY=KEY)
        finished = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert finished.returncode == 0, finished.stderr
        runs = [run for run in service.runs.values() if run.upserted["jobType"] == "job"]
        assert sorted(json.loads(run.upserted["config"])["lora.rank"]["value"] for run in runs) == [2, 4]
        for run in runs:
            assert run.upserted["groupName"] == "day/sweep"
            assert run.exit_codes == [0, 0], "once when the pack was trained, once when the job was done"
            assert run.steps == [1, 2, 3, 4], "what came live is not sent again"
            assert "metrics/dino" in run.summary
