"""What a run leaves to say how it ended: records without a place of this machine, links that can be followed."""

from __future__ import annotations

import errno
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from dbexp.core.errors import ConfigError, Interrupted, TrainingDiverged
from dbexp.dataset import Subject
from dbexp.evaluate.report import Copy, ImageScores, Report
from dbexp.runs.outcome import Outcome
from tests import run_folders


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    return Outcome.of(run_folders.config(), tmp_path / "run", ["lora.rank=4"])


def result(outcome: Outcome) -> dict[str, object]:
    content: dict[str, object] = json.loads(outcome.folder.result.read_text())
    return content


def test_paths_in_a_report_are_those_in_the_folder(outcome: Outcome) -> None:
    photos = (Path("/photos/IMG_7.JPG"), Path("/photos/IMG_9.png"))
    subject = Subject("rex", "sks", "dog", True, "a sks dog", photos, ("a", "b"))
    sample = str(outcome.folder.sample / "snow" / "0.png")
    scores = ImageScores("run", "snow", 0, sample, {}, str(photos[1]))
    copy = Copy(sample, str(photos[0]), 0.9)
    report = Report(None, "sks", "dog", {}, {}, {"run": {}}, {}, (), (scores,), (copy,), math.nan)
    relative = outcome._relative(report, subject)
    assert (relative.images[0].path, relative.images[0].nearest) == ("sample/snow/0.png", "dataset/01.png")
    assert (relative.copies[0].path, relative.copies[0].nearest) == ("sample/snow/0.png", "dataset/00.jpg")


@pytest.mark.parametrize(
    ("error", "status", "traced"),
    [
        (RuntimeError("shapes differ"), "failed", True),
        (ConfigError("lora.rank=0: no"), "failed", False),
        (TrainingDiverged("NaN at step 2"), "diverged", False),
        (Interrupted(15, "stopped"), "stopped", False),
        (KeyboardInterrupt(), "stopped", False),
    ],
)
def test_a_run_says_why_it_did_not_end(outcome: Outcome, error: BaseException, status: str, traced: bool) -> None:
    with pytest.raises(type(error)), outcome.recorded():
        raise error
    record = result(outcome)
    assert (record["name"], record["status"], record["overrides"]) == ("rank=4", status, ["lora.rank=4"])
    assert str(record["error"]).startswith(type(error).__name__)
    assert outcome.folder.traceback.exists() == traced


@pytest.mark.parametrize(
    ("place", "remedy"),
    [
        ("run/evaluate/metrics.json", "hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER)"),
        ("store/train/ab/cd.partial", "store=FOLDER"),
        ("elsewhere/x", "store=FOLDER or hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER)"),
    ],
)
@pytest.mark.parametrize(("number", "space"), [(errno.ENOSPC, "free some space or "), (errno.EROFS, "")])
def test_a_disk_that_is_full_or_closed_is_told_with_the_right_way_out(
    tmp_path: Path, place: str, remedy: str, number: int, space: str
) -> None:
    config = replace(run_folders.config(), store=str(tmp_path / "store"))
    with pytest.raises(ConfigError) as caught, Outcome.of(config, tmp_path / "run", []).recorded():
        raise OSError(number, os.strerror(number), str(tmp_path / place))
    assert str(caught.value) == (
        f"{tmp_path / place}: {os.strerror(number)}; {space}choose another place with {remedy}, then repeat the "
        "command: it goes on where it stopped"
    )


def test_a_lack_of_memory_is_one_message(outcome: Outcome) -> None:
    with pytest.raises(ConfigError) as caught, outcome.recorded():
        raise RuntimeError("could not create a primitive")
    assert str(caught.value).startswith(
        "memory did not suffice (RuntimeError: could not create a primitive); lower train.batch_size"
    )
    assert not outcome.folder.traceback.exists()


def test_the_next_attempt_takes_the_story_back(outcome: Outcome) -> None:
    with pytest.raises(RuntimeError), outcome.recorded():
        raise RuntimeError
    with outcome.recorded():
        assert not outcome.folder.result.exists() and not outcome.folder.traceback.exists()
