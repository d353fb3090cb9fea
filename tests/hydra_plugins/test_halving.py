"""Halving: who stops at a rung, what the runs that were stopped leave, and a race that is cut off."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import OmegaConf

from dbexp.pipeline import halving, sweep
from dbexp.pipeline.halving import Judging
from dbexp.pipeline.plan import Plan
from dbexp.runs import race as race_files
from dbexp.train import train as train_stage
from hydra_plugins.dbexp_pack import _halving, _work
from hydra_plugins.dbexp_pack._settings import HalvingConf, PackLauncherConf
from hydra_plugins.dbexp_pack._work import PackWork, WorkerLost
from tests.sweeps import Outcome, dbexp_command, planned_run, results, start, strike, tiny

pytest.importorskip("optuna")

RUNGS = HalvingConf(rungs=[100, 200, 400])
VALUES = {number: [value] for number, value in enumerate((0.3, 0.9, 0.1, 0.8, 0.5, 0.7, 0.2, 0.6))}


def stopped(values: dict[int, list[float]], place: int = 0, direction: str = "maximize", **changes: Any) -> set[int]:
    return _halving.stopped(values, place, HalvingConf(**{**vars(RUNGS), **changes}), direction)


def test_the_better_half_goes_on_whoever_came_first() -> None:
    assert stopped(VALUES) == {0, 2, 4, 6}
    assert stopped(VALUES, direction="minimize") == {1, 3, 5, 7}
    numbers = list(VALUES)
    random.Random(0).shuffle(numbers)
    shuffled = {new: VALUES[old] for new, old in enumerate(numbers)}
    assert {numbers[new] for new in stopped(shuffled)} == {0, 2, 4, 6}


def test_of_three_one_goes_on_and_at_the_next_rung_those_that_are_left_are_judged() -> None:
    assert stopped(VALUES, factor=3) == set(VALUES) - {1, 3}
    second = VALUES | {1: [0.9, 0.4], 3: [0.8, 0.6], 5: [0.7, 0.5], 7: [0.6, 0.7]}
    assert stopped(second, place=1) == {1, 5}


def test_the_last_run_is_not_stopped() -> None:
    assert stopped({3: [0.5]}) == set()
    assert stopped({3: [0.5, 0.4], 4: [0.1]}, place=1) == set()


def test_the_median_stops_those_that_are_worse_than_it() -> None:
    assert stopped(VALUES, pruner="median") == {0, 2, 4, 6}


def test_hyperband_lets_some_brackets_begin_later() -> None:
    values = {number: [random.Random(number).random()] for number in range(30)}
    first = stopped(values, pruner="hyperband")
    assert first and len(first) < len(stopped(values)), "the other brackets are not judged at the first rung"
    assert first == stopped(values, pruner="hyperband")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rungs": [200, 100]}, "hydra.launcher.halving.rungs=[200, 100]: must be rising"),
        ({"rungs": [0]}, "hydra.launcher.halving.rungs=[0]: must be rising"),
        ({"pruner": "luck"}, "hydra.launcher.halving.pruner=luck: choose one of successive, hyperband, median"),
        ({"judge": "me"}, "hydra.launcher.halving.judge=me: choose one of draw, loss"),
        ({"factor": 1}, "hydra.launcher.halving.factor=1: must be at least 2"),
        ({"prompts": 0}, "hydra.launcher.halving.prompts=0: must be at least 1"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    (problem,) = _halving.problems(PackLauncherConf(halving=HalvingConf(**{**vars(RUNGS), **changes})))
    assert problem.startswith(says)
    assert not _halving.problems(PackLauncherConf(halving=HalvingConf(**{**vars(RUNGS), **changes, "rungs": []})))


def test_what_halving_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _halving.problems(PackLauncherConf(halving=RUNGS, executor="gpus", devices=["cpu"]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (problem,) = _halving.problems(PackLauncherConf(halving=RUNGS))
    assert "pip install '.[optuna]'" in problem


def test_prompts_are_spread_over_the_list() -> None:
    assert halving._spread("abcdefghij", 4) == ("a", "c", "f", "h")
    assert halving._spread("ab", 4) == ("a", "b")


# -- a whole race ------------------------------------------------------------------------------------------------------


def words(store: Path) -> list[str]:
    """Four runs of 8 steps, two of which are stopped after 2 and one after 4."""
    own = ["objective=dino", "train.lr=1e-4,1e-3,3e-3,1e-2", "train.steps=8", "hydra.sweep.dir=sweep"]
    judged = ["hydra.launcher.halving.rungs=[2,4]", "hydra.launcher.halving.judge=draw"]
    judged += ["hydra.launcher.halving.prompts=2"]
    return ["-m", *own, *judged, *the_rest(store)]


def the_rest(store: Path) -> list[str]:
    return [word for word in tiny(store) if not word.startswith(("train.lr=", "train.steps="))]


def race(folder: Path, store: Path, *more: str) -> Outcome:
    return dbexp_command(folder, *words(store), *more)


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raced")
    outcome = race(folder, folder / "store")
    assert outcome.status == 0, outcome.err
    return folder


def test_stopped_runs_are_rows_that_say_where_and_why(raced: Path) -> None:
    rows = {row["job"]: row for row in results(raced / "sweep")}
    assert sorted(row["status"] for row in rows.values()) == ["finished", "pruned", "pruned", "pruned"]
    steps = sorted(row["error"].split(": DINO")[0] for row in rows.values() if row["error"])
    assert steps == ["stopped by halving at step 2 of 8"] * 2 + ["stopped by halving at step 4 of 8"]
    for row in rows.values():
        if row["status"] == "pruned":
            assert "] of 2 images of 2 prompts in 2 sampling steps, place " in row["error"] and row["dino"] == ""
            assert list((raced / "sweep" / row["job"] / "train" / "checkpoints").glob("step_00000?.safetensors"))
    page, table = ((raced / "sweep" / name).read_text(encoding="utf-8") for name in ("report.html", "results.md"))
    assert all("3 of 4 runs were stopped early by halving, and were judged by less" in text for text in (page, table))
    assert "Each value rests on 2 images of 2 prompts in 2 sampling steps (brackets: 95 % intervals" in page
    assert "<h2>Race" in page and page.count("<td>at 2</td>") == 2 and page.count("<td>went on</td>") == 1


def test_the_cost_of_judging_is_counted(raced: Path) -> None:
    (record,) = race_files.read(raced / "sweep")
    training = 3 * 2  # a row of the subject and one of its class, each forward and backward
    assert record["passes"]["training_all"] == 4 * 8 * training
    assert record["passes"]["training"] == (2 + 2 + 4 + 8) * training
    assert record["passes"]["judging"] == (4 + 2) * 2 * 2 * 2, "runs at both rungs, images, steps, with guidance"


def test_what_a_race_took_is_told_with_the_images_at_its_end(raced: Path) -> None:
    (record,) = race_files.read(raced / "sweep")
    images = 2 * 2 + 4  # of two prompts, and of the class
    assert record["passes"]["drawing_all"] == 4 * images * 2 * 2, "steps, with guidance"
    assert record["passes"]["drawing"] == images * 2 * 2, "one run went on"
    words = race_files.cost([record["passes"]])
    assert "the race took 55 % (training 30 %, judging 15 %, drawing 10 %); training and judging took 75 %" in words
    for name in ("results.md", "report.html"):
        assert words in (raced / "sweep" / name).read_text(encoding="utf-8")
    assert race_files.cost([record["passes"]] * 2) == words and race_files.cost([]) == ""


@pytest.mark.parametrize(
    ("judge", "objective", "advice"),
    [
        ("draw", "recommend", "Say hydra.launcher.halving.judge=loss with objective=dino"),
        ("loss", "recommend", "Say objective=dino, or hydra.launcher.halving.rungs=[]"),
        ("draw", "dino", None),
        ("loss", "dino", None),
    ],
)
def test_a_judge_that_stops_the_best_is_warned_of(
    judge: str, objective: str, advice: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    run = planned_run(0)
    settings = PackLauncherConf(halving=HalvingConf(rungs=[100], judge=judge))
    planned = Plan((replace(run, config=replace(run.config, objective=[objective])),), ())
    _halving.advise(settings, planned)
    _halving.advise(PackLauncherConf(halving=HalvingConf(judge=judge)), planned)  # no race
    assert [advice in message for message in caplog.messages if advice] == [True] * (advice is not None)
    assert len(caplog.messages) == (advice is not None)


def test_those_that_go_on_are_what_they_would_be_alone(raced: Path, tmp_path: Path) -> None:
    (best,) = (row for row in results(raced / "sweep") if row["status"] == "finished")
    alone = [f"train.lr={best['train.lr']}", "train.steps=8", "objective=dino", "hydra.run.dir=alone"]
    assert dbexp_command(tmp_path, *alone, *the_rest(tmp_path / "store")).status == 0
    of = [folder / "train" / "history.jsonl" for folder in (raced / "sweep" / best["job"], tmp_path / "alone")]
    raced_losses, losses = ([json.loads(line)["loss"] for line in path.read_text().splitlines()] for path in of)
    assert raced_losses == pytest.approx(losses, rel=1e-5) and len(losses) == 8


def test_a_stopped_run_goes_on_by_one_command(raced: Path) -> None:
    row = next(row for row in results(raced / "sweep") if "at step 4 of 8" in row["error"])
    alone = [f"train.lr={row['train.lr']}", "train.steps=8", "objective=dino", "hydra.run.dir=on"]
    outcome = dbexp_command(raced, *alone, *the_rest(raced / "store"))
    assert outcome.status == 0 and "going on from step 4 of 8" in outcome.err + outcome.out


def same_table(one: Path, other: Path) -> bool:
    names = ("results.csv", race_files.RACE)
    return all((one / "sweep" / name).read_bytes() == (other / "sweep" / name).read_bytes() for name in names)


@pytest.mark.parametrize(
    "step", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(6, marks=pytest.mark.slow)]
)  # before the first rung, between the two, after them
def test_a_race_that_was_cut_off_ends_as_one_that_was_not(
    raced: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_stage.train

    def cut(trainings: Any, model: Any, store: Any, on_rows: Any, **settings: Any) -> Any:
        def until(number: int, rows: Sequence[Mapping[str, float]]) -> None:
            if any(row["step"] == step for row in rows):
                os.kill(os.getpid(), signal.SIGTERM)
            on_rows(number, rows)

        return train(trainings, model, store, until, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", cut)
        assert race(tmp_path, tmp_path / "store").status == 143
    outcome = race(tmp_path, tmp_path / "store")
    assert outcome.status == 0, outcome.err
    assert same_table(tmp_path, raced)


@pytest.mark.slow
@pytest.mark.parametrize("line", ["training jobs 0, 1, 2, 3", "at step 2 4 runs", "at step 4 2 runs", "job 1 (lr"])
def test_a_race_that_was_killed_ends_as_one_that_was_not(raced: Path, tmp_path: Path, line: str) -> None:
    strike(start(tmp_path, *words(tmp_path / "store")), signal.SIGKILL, tmp_path, line)
    assert start(tmp_path, *words(tmp_path / "store")).wait(300) == 0, (tmp_path / "said.log").read_text()
    assert same_table(tmp_path, raced)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "executor"),
    [
        ("torch", ["hydra/launcher=pack_gpus", "hydra.launcher.devices=[cpu,cpu]"]),
        ("submitit", ["hydra/launcher=pack_submitit_local"]),
        ("ray", ["hydra/launcher=pack_ray", "+hydra.launcher.ray.init.num_cpus=2"]),
    ],
    ids=["gpus", "submitit", "ray"],
)
def test_a_race_in_other_processes_ends_as_in_this_one(
    raced: Path, tmp_path: Path, library: str, executor: list[str]
) -> None:
    pytest.importorskip(library)
    assert start(tmp_path, *words(tmp_path / "store"), *executor).wait(500) == 0, (tmp_path / "said.log").read_text()
    here, there = (race_files.read(folder / "sweep")[0] for folder in (raced, tmp_path))
    assert there["passes"] == here["passes"]
    assert [run["stopped"] for run in there["runs"]] == [run["stopped"] for run in here["runs"]]
    # packs of other lanes round otherwise
    values = [[each["value"] for run in record["runs"] for each in run["judgements"]] for record in (here, there)]
    assert values[1] == pytest.approx(values[0], abs=1e-3)
    rows = [{row["job"]: row["status"] for row in results(folder / "sweep")} for folder in (raced, tmp_path)]
    assert rows[0] == rows[1]


def test_a_worker_that_is_lost_at_a_rung_leaves_its_jobs_unjudged(tmp_path: Path) -> None:
    job, context = planned_run(3), HydraContext(None, None)  # type: ignore[arg-type]  # nothing is composed
    lost = PackWork("pack 1", (job,), (OmegaConf.create(),), True, None, print, context, str(tmp_path), Judging())
    ((number, returned),) = _work.recover(lost, "killed")
    assert number == 3 and returned.status is JobStatus.FAILED and isinstance(_work.error_of(returned), WorkerLost)
    assert not list(tmp_path.iterdir()), "its own job will say what became of it"


def test_runs_are_judged_by_their_loss_on_fixed_noise_too(raced: Path, tmp_path: Path) -> None:
    outcome = race(tmp_path, raced / "store", "hydra.launcher.halving.judge=loss")
    assert outcome.status == 0, outcome.err
    (record,) = race_files.read(tmp_path / "sweep")
    values = {run["number"]: run["judgements"][0]["value"] for run in record["runs"]}
    first = {run["number"] for run in record["runs"] if run["stopped"] == 2}
    assert record["column"] == "loss" and first == set(sorted(values, key=values.__getitem__)[2:])
    assert record["passes"]["judging"] == (4 + 2) * 4 * 8, "photographs at eight times each"


def test_without_rungs_nothing_races(tmp_path: Path) -> None:
    assert Judging().by == "draw" and not PackLauncherConf().halving.rungs
    assert race_files.read(tmp_path) == []
    (tmp_path / race_files.RACE).write_text('[{"runs": 3}]')
    assert race_files.read(tmp_path) == []
