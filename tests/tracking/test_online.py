"""Weights & Biases online: logins, and runs against a small server on this machine that may go away and come back.

Each case is a process of its own, because wandb reads its server and its login once per process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.tracking.runs import KEY, ROOT, environment
from tests.tracking.server import Service, serving

# --------------------------------------------------------------------------------------------------------- logins

ASK = """
import json, pathlib, sys
from dbexp import tracking
from dbexp.config.schema import Config
cfg = Config()
cfg.tracking.mode = "online"
pathlib.Path(sys.argv[1]).write_text(json.dumps(tracking.problems(cfg)))
"""


def problems_on_a_terminal(home: Path, **extra: str) -> list[str]:
    """What `problems` says on a terminal, where wandb could ask for a key and wait for ever."""
    answer = home / "answer.json"
    ours, theirs = os.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", ASK, str(answer)],
            env=environment(home, **extra),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            check=True,
            timeout=60,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    problems: list[str] = json.loads(answer.read_text())
    return problems


def test_a_missing_login_is_told(tmp_path: Path) -> None:
    (problem,) = problems_on_a_terminal(tmp_path)
    assert problem.startswith("tracking.mode=online: there is no W&B login")
    assert "wandb login" in problem


def test_a_key_that_cannot_be_one_is_told_and_not_shown(tmp_path: Path) -> None:
    (problem,) = problems_on_a_terminal(tmp_path, WANDB_API_KEY="hunter2")
    assert problem.startswith("tracking.mode=online: W&B refuses the login it finds")
    assert "hunter2" not in problem


def test_a_login_in_netrc_is_found(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert problems_on_a_terminal(tmp_path) == []


# ------------------------------------------------------------------------------------------------------ live runs

# one process: a job that ends well, one that fails, their summary; then the failed one again
LIVE = """
import sys
from contextlib import suppress
from pathlib import Path
from dbexp import tracking
from tests.tracking.runs import ROWS, SUMMARY, config, evaluate

sweep = Path(sys.argv[1])
def job(number, rank):
    cfg = config("online")
    cfg.lora.rank = rank
    return tracking.start(cfg, folder=sweep / str(number), name=f"rank={rank}", group="10-00-00")

evaluate(sweep / "0")
with job(0, 4) as tracker:
    tracker.train(ROWS[:3])
    tracker.train(ROWS[3:5])
    tracker.result()
with suppress(ZeroDivisionError), job(1, 8) as tracker:
    tracker.train(ROWS[:2])
    1 / 0
for _ in range(2):
    tracking.summarise(sweep, SUMMARY, [sweep / "0", sweep / "1"])
with job(1, 8) as tracker:
    tracker.train(ROWS[:4])
"""

# a job that goes online and hears, in the midst of its training, whether to go on; and one that is offline
LOST = """
import sys
from pathlib import Path
from dbexp import tracking
from tests.tracking.runs import ROWS, config, evaluate

tracking.session.FINISH_SECONDS = 3.0
sweep = Path(sys.argv[1])
for number, mode in enumerate(("offline", "online")):
    folder = sweep / str(number)
    evaluate(folder, lora=mode.encode())
    with tracking.start(config(mode), folder=folder, name=mode, group="10-00-00") as tracker:
        tracker.train(ROWS[:3])
        if mode == "online":
            print("trained", flush=True)
            sys.stdin.readline()
        tracker.train(ROWS[3:5])
        tracker.result()
"""

SYNC = """
import json, sys
from pathlib import Path
from dbexp import tracking

for _ in range(2):
    done = tracking.sync(Path(sys.argv[1]))
    names = [sorted(path.name for path in folders) for folders in (done.uploaded, done.present, done.failed)]
    print(json.dumps([*names, sorted(done.failed.values())]), flush=True)
"""


@contextmanager
def running(script: str, folder: Path, service: Service, home: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that tracks a sweep in `folder`."""
    command = [sys.executable, "-c", script, str(folder)]
    env = environment(home, WANDB_BASE_URL=service.url, WANDB_API_KEY=KEY)
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def completed(script: str, folder: Path, service: Service, home: Path) -> str:
    """Standard output of a process that ends well."""
    with running(script, folder, service, home) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


class TestLive:
    """A sweep of two jobs as it arrives on the server."""

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("home")

    @pytest.fixture(scope="class")
    @classmethod
    def service(cls, home: Path) -> Iterator[Service]:
        with serving() as service:
            completed(LIVE, home / "sweep", service, home)
            yield service

    def test_every_job_has_a_run_of_its_own_and_the_sweep_has_one(self, service: Service) -> None:
        kinds = sorted((run.name, run.upserted["jobType"]) for run in service.runs.values())
        assert kinds == [("rank=4", "job"), ("rank=8", "job"), ("summary 10-00-00", "sweep")]
        assert {run.upserted["groupName"] for run in service.runs.values()} == {"10-00-00"}
        assert {run.upserted["project"] for run in service.runs.values()} == {"dbexp"}
        assert json.loads(service.named("rank=8").upserted["config"])["lora.rank"] == {"value": 8}

    def test_a_good_job(self, service: Service) -> None:
        run = service.named("rank=4")
        assert run.steps == [1, 2, 3, 4, 5]
        assert run.exit_codes == [0]
        assert run.summary["metrics/dino"] == 0.5
        (result,) = [row for row in run.history if "train/step" not in row]
        assert {"tables/metrics", "tables/prompts", "pictures/contact_sheet", "metrics/dino"} <= set(result)

    def test_its_lora_and_its_pictures_arrive(self, service: Service) -> None:
        (lora,) = service.committed("lora")
        assert (lora["artifactCollectionName"], lora["files"]) == ("lora-dog3-random", ["lora.safetensors"])
        assert b"weights" in service.files.values()
        tables = [
            artifact
            for artifact in service.committed("run_table")
            if artifact["runName"] in self.ids(service, "rank=4")
        ]
        assert sorted(len(artifact["files"]) for artifact in tables) == [1, 7]  # metrics; prompts and six pictures
        assert any("media/images/pictures/contact_sheet" in path for path in service.files)

    def test_the_recommended_runs_lora_is_the_best_of_its_versions(self, service: Service) -> None:
        (lora,) = service.committed("lora")
        assert "best" in {alias["alias"] for alias in lora["aliases"]}

    def test_what_a_run_was_made_from_is_named_by_hashes(self, service: Service) -> None:
        (photographs,) = service.committed("dataset")
        (model,) = service.committed("model")
        names = (photographs["artifactCollectionName"], model["artifactCollectionName"])
        assert names == ("photographs-dog3", "base-model-random")
        assert photographs["files"] == model["files"] == ["hashes.json"]
        assert [asked["artifactID"] for asked in service.used] != []

    def test_a_live_run_says_what_machine_and_packages_it_runs_with(self, service: Service) -> None:
        (run_id,) = self.ids(service, "rank=4")
        files = [path for path in service.files if f"/{run_id}/" in path]
        assert any(path.endswith("wandb-metadata.json") for path in files)
        assert any(path.endswith("requirements.txt") for path in files)

    def ids(self, service: Service, name: str) -> list[str]:
        return [key for key, run in service.runs.items() if run.name == name]

    def test_a_failed_job_is_marked_and_its_repetition_goes_on_with_the_run(self, service: Service) -> None:
        run = service.named("rank=8")
        assert run.exit_codes == [1, 0]
        assert run.steps == [1, 2, 3, 4], "what the server had is not sent again"

    def test_a_summary_that_has_nothing_new_to_say_says_it_once(self, service: Service) -> None:
        run = service.named("summary 10-00-00")
        assert run.exit_codes == [0]
        (row,) = run.history
        tables = {"tables/comparison", "tables/effects", "tables/statements", "charts/pareto_table"}
        assert {*tables, "pictures/contact_sheets"} <= {*row}
        assert (run.summary["best/title"], run.summary["best/dino"]) == ("0: rank=4", 0.5)

    def test_what_has_arrived_is_marked(self, service: Service, home: Path) -> None:
        assert [path.parts[-3] for path in sorted(home.rglob("synced.json"))] == ["0", "1", "sweep"]

    def test_the_key_is_in_no_file(self, service: Service, home: Path) -> None:
        files = [path for path in home.rglob("*") if path.is_file()]
        assert any(path.suffix == ".wandb" for path in files)
        assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.mark.slow  # over a minute, most of it W&B waiting for a server that is gone
class TestSync:
    """A server that goes away in the middle of a job, and comes back after the sweep's folder has been moved."""

    @pytest.fixture(scope="class")
    @classmethod
    def home(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("home")

    @pytest.fixture(scope="class")
    @classmethod
    def lost(cls, home: Path) -> Iterator[tuple[Service, str, list[list[list[str]]]]]:
        """The server at the end, what the job said when it lost its server, and what two uploads said."""
        service = Service()
        with running(LOST, home / "sweep", service, home) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "trained\n"
            wait_for(lambda: service.runs and service.named("online").steps == [1, 2, 3])
            service.stop()
            _, stderr = process.communicate("\n", timeout=300)
        assert process.returncode == 0
        deep = home / "moved" / "subject=dog" / "rank" / "lr=0.1"  # however deep the jobs lie below what is uploaded
        deep.mkdir(parents=True)
        (home / "sweep").rename(deep / "sweep")
        service = Service(service.port, service)
        try:
            out = completed(SYNC, home / "moved", service, home)
            yield service, stderr, [json.loads(line) for line in out.splitlines()]
        finally:
            service.stop()

    def test_the_loss_costs_a_warning(self, lost: Any) -> None:
        assert "W&B lacks the end of the run (TimeoutError" in lost[1]
        assert "Traceback" not in lost[1]

    def test_an_upload_completes_it_once(self, lost: Any) -> None:
        first, second = lost[2]
        assert first == [["0", "1"], [], [], []]
        assert second == [[], ["0", "1"], [], []]

    @pytest.mark.parametrize("name", ["online", "offline"])
    def test_nothing_is_lost_and_nothing_is_there_twice(self, lost: Any, name: str) -> None:
        run = lost[0].named(name)
        assert run.steps == [1, 2, 3, 4, 5]
        assert run.exit_codes == [0]
        assert run.summary["metrics/dino"] == 0.5
        (result,) = [row for row in run.history if "train/step" not in row]
        assert {"tables/metrics", "tables/prompts", "pictures/contact_sheet"} <= set(result)
        assert name.encode() in lost[0].files.values(), "the LoRA"

    def test_wandb_sync_will_not_upload_the_offline_run_again(self, lost: Any, home: Path) -> None:
        (offline,) = (home / "moved").glob("**/0/tracking/wandb/offline-run-*/*.wandb")
        assert offline.with_name(f"{offline.name}.synced").exists()


def wait_for(condition: Callable[[], object]) -> None:
    """Until it holds; what is awaited is a request from another process."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
