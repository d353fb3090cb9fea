"""What a sweep says that it will take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dbexp.config.schema import Config
from dbexp.pipeline.forecast import Forecast, forecast
from dbexp.pipeline.plan import Plan, PlannedRun
from tests.sweeps import Outcome, dbexp_command, tiny

MIB = 1e6


@pytest.mark.parametrize(
    ("forecast", "sentence"),
    [
        (Forecast(), "nothing is left to compute"),
        (
            Forecast(12, {"sample": None, "evaluate": None, "job": 1.0}, None),
            "to do: 12 pictures, time and disk not known yet (nothing like it was made here before)",
        ),
        (
            Forecast(480, {"train": 420.0, "prior": 61.0, "sample": 240.0, "evaluate": 50.0, "job": 9.0}, 130 * MIB),
            "to do: 480 pictures, about 13 min (class images 61 s, training 7 min, sampling 4 min, metrics 50 s), "
            "130.0 MB of disk; as this machine took before",
        ),
        (
            Forecast(4, {"train": None, "sample": 20.0}, None),
            "to do: 4 pictures, more than 20 s (training not known yet, sampling 20 s), disk not known yet; "
            "as this machine took before",
        ),
        (
            Forecast(0, {"train": 7200.0}, 2 * MIB, estimated=True),
            "to do: about 2.0 h, 2.0 MB of disk; estimated, within a factor of 2",
        ),
    ],
)
def test_sentences(forecast: Forecast, sentence: str) -> None:
    assert str(forecast) == sentence


def test_what_is_unknown_once_is_unknown_in_all() -> None:
    forecast = Forecast()
    for seconds in (1.0, None, 2.0):
        forecast.add("train", seconds)
        forecast.add("sample", 3.0)
        forecast.add_disk(seconds)
    assert forecast.seconds == {"train": None, "sample": 9.0}
    assert forecast.disk is None


def test_a_sweep_says_what_it_takes(tmp_path: Path) -> None:
    """Three class images; two prompts of two images and four class samples, with each LoRA and without."""

    def sweep(*words: str) -> Outcome:
        outcome = dbexp_command(
            tmp_path, "-m", *tiny(tmp_path / "store"), "train.steps=20", "hydra.sweep.dir=sweep", *words
        )
        assert outcome.status == 0, outcome.err
        return outcome

    def to_do(*words: str) -> str:
        (line,) = [line for line in sweep(*words, "hydra.launcher.plan_only=true").err.splitlines() if "to do" in line]
        return line

    unknown = to_do("lora.rank=2,4")
    assert not (tmp_path / "sweep").exists() and not list((tmp_path / "store").glob("sample"))
    assert unknown.endswith("pictures, time and disk not known yet (nothing like it was made here before)")
    whole = int(unknown.split()[2])
    sweep("lora.rank=2,4")
    again = sweep("lora.rank=2,4", "hydra.launcher.plan_only=true")
    assert "nothing is left to compute" in again.err
    known = to_do("lora.rank=2,4,8")
    assert "as this machine took before" in known and "not known" not in known
    assert int(known.split()[2]) == (whole - 3) // 3, "one of two with what both share, which is as much"
    assert "training" in known and "class images" not in known


class Asked:
    """Estimates that are all a second, and note which checkpoint is asked to draw."""

    def __init__(self) -> None:
        self.drawn: list[str] = []

    def train(self, config: Config, lanes: int) -> float:
        return 1.0

    def draw(self, config: Config) -> float:
        self.drawn.append(config.model.path)
        return 1.0

    def evaluate(self, config: Config) -> float:
        return 1.0


def test_each_checkpoint_is_estimated_by_what_it_draws(tmp_path: Path, checked: Callable[..., Config]) -> None:
    """Class images by the one that is trained on, samples by the other."""
    config = checked(
        "model=krea2_turbo", "prior.count=3", "sample.base=false", "sample.class_images=0", f"store={tmp_path}"
    )
    run, asked = PlannedRun(0, (), (), config), Asked()
    told = forecast(Plan((run,), ((run,),)), {0: None}, None, estimates=asked)
    assert asked.drawn == ["krea/Krea-2-Raw", "krea/Krea-2-Turbo"]
    assert told.estimated and told.seconds["prior"] == 3 * config.prior.steps
