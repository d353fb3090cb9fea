"""`hydra/launcher=pack`: a whole sweep on tiny random weights, and everything that may go wrong on the way."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, LauncherTestSuite
from hydra.version import VersionBase
from packaging.version import Version

from dbexp.core.errors import Interrupted
from dbexp.evaluate import evaluate
from dbexp.pipeline import sweep
from dbexp.train import lane, train
from tests import builders
from tests.sweeps import Outcome, dbexp_command, results, start, strike, tiny

PAPER = ("dino", "clip_i", "clip_t", "pres", "div")


@pytest.fixture
def years_ago() -> Iterator[None]:
    """The defaults of Hydra 1.1, which its suite expects, whatever this process has asked for before."""
    base = VersionBase.instance()
    before = base.getbase()
    base.setbase(Version("1.1"))
    yield
    base.version_base = before


# its programs are of an age when jobs changed their working directory, of which Hydra warns
of_old = pytest.mark.filterwarnings("ignore:(?s).*working directory:UserWarning")


@of_old
@pytest.mark.usefixtures("years_ago")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("pack", [])])
class TestHydrasOwnSuite(LauncherTestSuite):
    """Other programs' sweeps run as with Hydra's basic launcher."""


@of_old
@pytest.mark.usefixtures("years_ago")
@pytest.mark.parametrize(("launcher_name", "overrides"), [("pack", ["hydra.sweeper.max_batch_size=2"])])
class TestHydrasOwnSuiteInBatches(BatchedSweeperTestSuite):
    """The same, batch after batch."""


SWEPT = ["lora.rank=2,4", "seed=1,2"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the finished sweep ran."""
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def finished(home: Path) -> Outcome:
    """A sweep of four jobs in `place`/sweep, with its store beside it."""
    return dbexp_command(home, "-m", "hydra.sweep.dir=sweep", *tiny(home / "store"), *SWEPT)


@pytest.fixture
def computes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(train, "open_slots", never)
    monkeypatch.setattr("dbexp.sample.draw.sample_batch", never)


class TestFinished:
    def test_what_it_says(self, finished: Outcome) -> None:
        assert finished.status == 0, finished.err
        assert "4 jobs: 4 to train in 1 pack, 0 in the store" in finished.err
        assert "0    rank=2 seed=1  pack 1" in finished.err
        lines = [line for line in finished.out.splitlines() if line.startswith("job ")]
        assert [line.partition(")")[0] for line in lines] == [
            "job 0 (rank=2 seed=1",
            "job 1 (rank=2 seed=2",
            "job 2 (rank=4 seed=1",
            "job 3 (rank=4 seed=2",
        ]
        assert all("DINO 0." in line and "DIV 0." in line for line in lines)
        assert [line[:6] for line in finished.out.splitlines() if " runs" in line[:10]] == ["4 runs"]  # one table
        assert "contact sheet" not in finished.out

    def test_seeds_are_averaged(self, finished: Outcome, home: Path) -> None:
        rows = {row["job"]: float(row["dino"]) for row in results(home / "sweep")}
        _, _, below = finished.out.partition("what it cost")[0].partition("mean ± standard deviation over seeds")
        mean = (rows["0"] + rows["1"]) / 2
        deviation = abs(rows["0"] - rows["1"]) / 2**0.5
        (line,) = [line for line in below.splitlines() if line.startswith("rank=2")]
        assert f"{mean:.3f} ± {deviation:.3f}" in line

    def test_results_are_ranked(self, finished: Outcome, home: Path) -> None:
        rows = results(home / "sweep")
        dino = [float(row["dino"]) for row in rows]
        assert len(dino) == 4 and dino == sorted(dino, reverse=True)
        assert {row["status"] for row in rows} == {"finished"}
        settings = {row["job"]: (row["lora.rank"], row["seed"]) for row in rows}
        assert settings == {"0": ("2", "1"), "1": ("2", "2"), "2": ("4", "1"), "3": ("4", "2")}
        for row in rows:
            record = json.loads((home / "sweep" / row["job"] / "result.json").read_text())
            assert {name: float(row[name]) for name in PAPER} == pytest.approx(
                {name: record["metrics"][name] for name in PAPER}, rel=1e-8
            )

    def test_jobs_are_ordinary(self, finished: Outcome, home: Path) -> None:
        for number in "0123":
            folder = home / "sweep" / number
            assert (folder / ".hydra" / "overrides.yaml").is_file() and (folder / "dbexp.log").is_file()
            assert (folder / "train" / "lora.safetensors").is_file()

    @pytest.mark.parametrize("folder", ["sweep", "elsewhere"])
    def test_again_computes_nothing(self, finished: Outcome, home: Path, computes_nothing: None, folder: str) -> None:
        before = (home / "sweep" / "results.csv").read_bytes()
        again = dbexp_command(home, "-m", f"hydra.sweep.dir={folder}", *tiny(home / "store"), *SWEPT)
        assert again.status == 0, again.err
        assert "0 to train in 0 packs, 4 in the store" in again.err
        assert (home / folder / "results.csv").read_bytes() == before

    def test_a_job_alone_gives_the_same(self, finished: Outcome, home: Path, tmp_path: Path) -> None:
        single = dbexp_command(tmp_path, "hydra.run.dir=run", *tiny(tmp_path / "store"), "lora.rank=4", "seed=2")
        assert single.status == 0, single.err
        assert "contact sheet" in single.out
        metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
        (packed,) = [row for row in results(home / "sweep") if row["job"] == "3"]
        # a loss that differs in the seventh digit may move a pixel by one of 256 grey levels
        assert {name: float(packed[name]) for name in PAPER} == pytest.approx(
            {name: metrics[name] for name in PAPER}, abs=2e-4
        )

    def test_the_basic_launcher_still_works(self, finished: Outcome, home: Path, computes_nothing: None) -> None:
        argv = ["hydra/launcher=basic", "hydra.sweep.dir=basic", *tiny(home / "store"), "lora.rank=2", "seed=1,2"]
        outcome = dbexp_command(home, "-m", *argv)
        assert outcome.status == 0, outcome.err
        # the callback does what the pack launcher does itself
        assert [row["status"] for row in results(home / "basic")] == ["finished", "finished"]
        assert "job 1 (" in outcome.out and "2 runs" in outcome.out

    def test_results_of_other_launchers_tell_of_failures(
        self, finished: Outcome, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Hydra 1.3 calls nobody at the end of a sweep with a failed job."""

        def fails(*_: Any) -> None:
            raise RuntimeError("no luck")

        monkeypatch.setattr(evaluate, "find_or_evaluate", fails)
        argv = ["hydra/launcher=basic", "hydra.sweep.dir=failing", *tiny(home / "store"), "lora.rank=2", "seed=1"]
        outcome = dbexp_command(home, "-m", *argv)
        assert outcome.status == 1
        assert [(row["status"], row["error"]) for row in results(home / "failing")] == [
            ("failed", "RuntimeError: no luck")
        ]
        assert "failed: RuntimeError: no luck" in outcome.out

    def test_a_job_more_costs_one(self, finished: Outcome, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trained = lanes_trained(monkeypatch)
        more = dbexp_command(home, "-m", "hydra.sweep.dir=more", *tiny(home / "store"), "lora.rank=2,3", "seed=1")
        assert more.status == 0 and trained == [1], more.err


def lanes_trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of lanes whenever a pack is trained."""
    counts: list[int] = []
    whole = lane.open_slots

    def counted(lanes: Sequence[Any], *more: Any) -> Any:
        counts.append(len(lanes))
        return whole(lanes, *more)

    monkeypatch.setattr(train, "open_slots", counted)
    return counts


class TestBeforeTheFirstJob:
    def test_all_faults_of_all_jobs(self, tmp_path: Path, computes_nothing: None) -> None:
        folders = f"dataset.path={builders.pictures()[0].parent},nowhere"
        argv = ["hydra.sweep.dir=sweep", *tiny(tmp_path / "store"), "lora.rank=2,0", folders]
        outcome = dbexp_command(tmp_path, "-m", *argv)
        assert outcome.status == 1
        assert "Traceback" not in outcome.err
        problems = outcome.err.partition("dbexp: 2 problems\n")[2]
        assert "job 1 (path=" in problems and "job 3 (path=nowhere rank=0): lora.rank=0: must be at least 1" in problems
        assert "job 2 (path=nowhere rank=2), job 3 (path=nowhere rank=0): dataset.path=nowhere" in problems
        assert "job 0" not in problems
        assert not (tmp_path / "store").exists() and not list((tmp_path / "sweep").glob("[0-9]*"))

    def test_weights_that_are_not_there(self, tmp_path: Path, computes_nothing: None) -> None:
        argv = [*tiny(tmp_path / "store"), f"evaluate.dino.weights={tmp_path / 'none.pt'}", "lora.rank=2,4"]
        outcome = dbexp_command(tmp_path, "-m", "hydra.sweep.dir=sweep", *argv)
        assert outcome.status == 1
        assert outcome.err.splitlines()[-1].startswith("dbexp: evaluate.dino.weights=")
        assert outcome.err.count("none.pt") == 1 and "Traceback" not in outcome.err

    @pytest.mark.parametrize(
        ("argument", "says"),
        [
            ("hydra.launcher.size=0", "hydra.launcher.size=0: must be at least 1"),
            ("hydra.job.chdir=true", "hydra.job.chdir=true: "),
            ("hydra.launcher.size=many", "hydra.launcher.size=many"),
        ],
    )
    def test_settings_of_the_launcher(self, tmp_path: Path, computes_nothing: None, argument: str, says: str) -> None:
        outcome = dbexp_command(tmp_path, "-m", argument, *tiny(tmp_path / "store"), "lora.rank=2,4")
        assert outcome.status == 1
        assert f"dbexp: {says}" in outcome.err and "Traceback" not in outcome.err

    @pytest.mark.parametrize(
        ("subdir", "says"),
        [
            ("${dataset.class_noun}", "job 1 (rank=4): hydra.sweep.subdir=dog: is the folder of job 0 too"),
            ("../${hydra.job.num}", "hydra.sweep.subdir=../0: leads out of the folder of the sweep"),
        ],
    )
    def test_folders_that_jobs_would_share(
        self, tmp_path: Path, computes_nothing: None, subdir: str, says: str
    ) -> None:
        argv = ["hydra.sweep.dir=sweep", f"hydra.sweep.subdir='{subdir}'", *tiny(tmp_path / "store"), "lora.rank=2,4"]
        outcome = dbexp_command(tmp_path, "-m", *argv)
        assert outcome.status == 1
        assert says in outcome.err and "Traceback" not in outcome.err

    def test_the_plan_alone(self, tmp_path: Path, computes_nothing: None) -> None:
        argv = ["hydra.launcher.plan_only=true", "hydra.launcher.size=2", "hydra.sweep.dir=sweep"]
        outcome = dbexp_command(tmp_path, "-m", *argv, *tiny(tmp_path / "store"), "lora.rank=2,4,8")
        assert outcome.status == 0, outcome.err
        assert "3 jobs: 3 to train in 2 packs, 0 in the store" in outcome.err
        assert "2    rank=8        pack 2" in outcome.err
        assert not list((tmp_path / "sweep").glob("[0-9]*"))

    def test_a_sweep_from_a_preset(self, tmp_path: Path, computes_nothing: None) -> None:
        preset = tmp_path / "mine" / "experiment" / "ranks.yaml"
        preset.parent.mkdir(parents=True)
        preset.write_text(
            "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      lora.rank: 2,4\n"
        )
        argv = ["--config-dir=mine", "experiment=ranks", "hydra.launcher.plan_only=true"]
        outcome = dbexp_command(tmp_path, *argv, *tiny(tmp_path / "store"))
        assert outcome.status == 0, outcome.err
        assert "2 jobs" in outcome.err and "rank=4" in outcome.err


class TestFailures:
    def test_they_stop_no_other_job(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Outcome, home: Path
    ) -> None:
        """Two jobs diverge; of the other two one fails in evaluation."""
        trained = lanes_trained(monkeypatch)
        whole = evaluate.evaluate
        calls: list[int] = []

        def fails_first(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("no more\nluck")
            return whole(*arguments)

        monkeypatch.setattr(evaluate, "evaluate", fails_first)
        argv = [*tiny(tmp_path / "store"), "lora.rank=2,4", "train.lr=1e-3,1e16"]
        outcome = dbexp_command(tmp_path, "-m", "hydra.sweep.dir=sweep", *argv)

        assert outcome.status == 1
        assert trained == [4], "a lane that diverged in its pack is not trained again by its job"
        rows = {row["job"]: row for row in results(tmp_path / "sweep")}
        assert {job: row["status"] for job, row in rows.items()} == dict(
            zip("0123", ["failed", "finished", "diverged", "diverged"], strict=True)
        )
        assert rows["3"]["train.lr"] == "1e+16"
        assert list(rows) == ["1", "0", "2", "3"]
        assert outcome.err.splitlines()[-1] == "dbexp: 3 of 4 jobs failed; see above"
        assert "Traceback" not in outcome.err
        assert "job 0 (lr=0.001 rank=2) failed: RuntimeError: no more" in outcome.err
        assert "job 3 (lr=1e+16 rank=4) failed: TrainingDiverged: the loss became NaN or infinite" in outcome.err
        assert "RuntimeError: no more\nluck" in (tmp_path / "sweep" / "0" / "traceback.log").read_text()
        assert not (tmp_path / "sweep" / "3" / "traceback.log").exists()

        commands = [shlex.split(line)[1:] for line in outcome.err.splitlines() if line.startswith("  repeat")]
        assert [command[0] for command in commands] == ["dbexp"] * 3
        monkeypatch.undo()
        repeated = dbexp_command(tmp_path, "hydra.run.dir=repeated", *commands[0][1:])
        assert repeated.status == 0, repeated.err

        # the sweep again: only what failed by chance is mended, and nothing is trained
        trained = lanes_trained(monkeypatch)
        again = dbexp_command(tmp_path, "-m", "hydra.sweep.dir=sweep", *argv)
        assert again.status == 1 and trained == []
        assert not (tmp_path / "sweep" / "0" / "traceback.log").exists()
        assert "2 of 4 jobs failed" in again.err

        # only whoever deletes what the message names trains a diverged run once more
        marked = again.err.partition("with the same settings delete ")[2].splitlines()[0]
        shutil.rmtree(marked)
        single = dbexp_command(
            tmp_path, "hydra.run.dir=alone", *tiny(tmp_path / "store"), "lora.rank=2", "train.lr=1e16"
        )
        assert single.status == 1 and trained == [1]

    def test_an_interrupt_while_a_pack_trains(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise Interrupted(signal.SIGTERM, "training stopped at step 3")

        monkeypatch.setattr(sweep, "train", interrupted)
        outcome = dbexp_command(tmp_path, "-m", "hydra.sweep.dir=sweep", *tiny(tmp_path / "store"), "lora.rank=2,4")
        assert outcome.status == 143
        assert outcome.err.splitlines()[-1] == "dbexp: training stopped at step 3"
        assert not list((tmp_path / "sweep").glob("[0-9]*"))

    def test_kill_9(self, tmp_path: Path) -> None:
        """Killed while it trains, the same command gives what an uninterrupted sweep gives, byte for byte."""
        swept = ["train.steps=36", "train.checkpoint_every=15", "lora.rank=2,4"]
        argv = ["-m", "hydra.sweep.dir=sweep", *tiny(tmp_path / "store"), *swept]
        # both lanes have saved step 15, and step 30 is far
        status = strike(
            start(tmp_path, *argv), signal.SIGKILL, tmp_path, lambda: list((tmp_path / "store").glob("packs/*.pt"))
        )
        assert status == -signal.SIGKILL
        assert not list((tmp_path / "store").glob("train/*/*/manifest.json"))

        resumed = dbexp_command(tmp_path, *argv)
        assert resumed.status == 0 and "going on from step 15 of 36" in resumed.err, resumed.err
        whole = dbexp_command(tmp_path, "-m", "hydra.sweep.dir=whole", *tiny(tmp_path / "other"), *swept)
        assert whole.status == 0, whole.err
        assert (tmp_path / "sweep" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()


def test_runs_of_different_length_are_one_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = lanes_trained(monkeypatch)
    argv = ["hydra.launcher.size=1", "hydra.sweep.dir=sweep", *tiny(tmp_path / "store"), "train.steps=2,4"]
    outcome = dbexp_command(tmp_path, "-m", *argv)
    assert outcome.status == 0, outcome.err
    assert trained == [1]
    lengths = [len((tmp_path / "sweep" / job / "train" / "history.jsonl").read_text().splitlines()) for job in "01"]
    assert lengths == [2, 4]


def test_the_time_in_a_folder_is_that_of_the_start(tmp_path: Path) -> None:
    """By default a sweep's folder is called by day and time, and everything of the sweep must find it again."""
    by_time = "hydra.sweep.dir='multirun/${now:%H-%M-%S-%f}'"
    outcome = dbexp_command(tmp_path, "-m", by_time, *tiny(tmp_path / "store"), "lora.rank=2,3")
    assert outcome.status == 0
    (folder,) = (tmp_path / "multirun").iterdir()
    assert f"results        multirun/{folder.name}/results.csv" in outcome.out
    assert (folder / "report.html").is_file()


@pytest.mark.parametrize("launcher", ["pack", "basic"])
@pytest.mark.parametrize(
    ("subdir", "places"),
    [
        ("${dataset.class_noun}/rank ${lora.rank}", ["dog/rank 2", "dog/rank 3"]),
        ("${hydra.job.override_dirname}", ["lora.rank=2", "lora.rank=3"]),
    ],
)
def test_jobs_at_any_depth_keep_their_table(tmp_path: Path, launcher: str, subdir: str, places: list[str]) -> None:
    words = [word for word in tiny(tmp_path / "store") if "[" not in word]
    keys = "[" + ",".join(sorted({word.partition("=")[0] for word in words} | {"hydra/launcher"})) + "]"
    argv = ["hydra.sweep.dir=sweep", f"hydra.sweep.subdir='{subdir}'", f"hydra/launcher={launcher}", *words]
    argv += [f"hydra.job.config.override_dirname.exclude_keys={keys}", "sample.images_per_prompt=1"]
    outcome = dbexp_command(tmp_path, "-m", *argv, "lora.rank=2,3", "sample.prompts=[a dog]")
    assert outcome.status == 0, outcome.err
    rows = results(tmp_path / "sweep")
    if "dirname" in subdir:
        assert [row["job"].rpartition("lora.rank=")[2][:1] for row in sorted(rows, key=lambda row: row["job"])] == [
            "2",
            "3",
        ]
    else:
        assert sorted(row["job"] for row in rows) == places
    assert all(row["status"] == "finished" and row["dino"] for row in rows)
    assert "results        sweep/results.csv" in outcome.out and (tmp_path / "sweep" / "report.html").is_file()
