"""One run from config to metric table on tiny random weights, and everything that may go wrong on the way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError, TrainingDiverged
from dbexp.evaluate import objective
from dbexp.evaluate.columns import COLUMNS, RECOMMEND
from dbexp.evaluate.report import Report
from dbexp.models import random_weights
from dbexp.pipeline import run
from dbexp.pipeline.requests import sample_request
from dbexp.train import train
from tests import builders

PHOTOS = Path(__file__).resolve().parents[3] / "shared" / "data" / "dreambooth"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline folder."""
    return random_weights.build(tmp_path_factory.mktemp("weights"), random_weights.TINY)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four different square pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def overrides(weights: Path, photos: Path, tmp_path: Path) -> list[str]:
    """A whole run in a few seconds."""
    prompts = '["a {token} {class} in the snow","a red {token} {class}","a {token} {class} in a chef outfit"]'
    return [
        "model=random",
        *builders.overrides(tmp_path / "store", weights, photos),
        "train.checkpoint_every=2",
        "lora.rank=2",
        "prior.count=3",
        "prior.steps=2",
        f"sample.prompts={prompts}",
        "sample.class_images=4",
    ]


@pytest.fixture
def config(checked: Callable[..., Config], overrides: list[str]) -> Config:
    """The same as a checked config."""
    return checked(*overrides)


def test_a_run_leaves_a_folder_that_tells_everything(config: Config, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    values = run.run(config, folder, ["lora.rank=2"])

    assert set(values) - {RECOMMEND} <= set(COLUMNS) and RECOMMEND in values, "columns, and the objective"
    assert {"dino", "clip_i", "clip_t", "pres", "div", "pres_delta", "dino_real"} <= set(values)
    score = values.pop(RECOMMEND)
    assert all(np.isfinite(value) for value in values.values())
    record = json.loads((folder / "evaluate" / "metrics.json").read_text())
    report = Report.from_json(json.dumps(record["report"]))
    assert score == pytest.approx(objective.value(report.rows, RECOMMEND), nan_ok=True)
    assert {name: estimate.value for name, estimate in report.rows["run"].items()} == values
    assert set(report.rows) == {"run", "base", "real"}
    assert report.label is not None and "random" in report.label
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished" and result["name"] == "rank=2"
    assert result["metrics"] == values
    # everything the report names is in the folder, by relative paths
    assert len(report.images) == 2 * 3 * 2
    assert all((folder / image.path).is_file() for image in report.images)
    assert len(list((folder / "dataset").iterdir())) == 4
    assert len(list((folder / "prior").glob("*.png"))) == 3
    assert len(list((folder / "sample" / "class").glob("*.png"))) == 4
    assert len(list((folder / "sample" / "class_base").glob("*.png"))) == 4
    assert (folder / "sample" / "contact_sheet.png").is_file()
    history = [json.loads(line) for line in (folder / "train" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    assert [path.name for path in (folder / "train" / "checkpoints").iterdir()] == ["step_000002.safetensors"]
    assert str(tmp_path) not in json.dumps({**record, "config": None})


def test_the_same_run_again_computes_nothing_and_gives_the_same_record(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run.run(config, tmp_path / "first", [])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(train, "open_slots", never)
    monkeypatch.setattr("dbexp.sample.draw.sample_batch", never)
    assert run.run(config, tmp_path / "second", []) == first


def test_without_prior_preservation_there_are_no_class_images_for_training(config: Config, tmp_path: Path) -> None:
    without = replace(config, prior=replace(config.prior, weight=0.0))
    values = run.run(without, tmp_path / "run", [])
    assert not (tmp_path / "run" / "prior").exists()
    assert np.isfinite(values["pres"])


def test_without_class_samples_pres_is_missing_and_says_why(config: Config, tmp_path: Path) -> None:
    without = replace(config, sample=replace(config.sample, class_images=0, base=False))
    values = run.run(without, tmp_path / "run", [])
    assert np.isnan(values["pres"]) and np.isfinite(values["dino"])
    record = json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())
    assert record["report"]["rows"]["run"]["pres"]["reason"]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["pres"] is None


def test_all_problems_are_told_at_once_and_before_anything_is_written(config: Config, tmp_path: Path) -> None:
    wrong = replace(
        config,
        dataset=replace(config.dataset, path=str(tmp_path / "nowhere")),
        sample=replace(config.sample, prompts=["a {tokn} dog"]),
    )
    with pytest.raises(ConfigError) as caught:
        run.run(wrong, tmp_path / "run", [])
    assert len(caught.value.problems) == 2
    assert "nowhere" in caught.value.problems[0] and "tokn" in caught.value.problems[1]
    assert not Path(str(config.store)).exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


def test_a_token_of_several_pieces_is_warned_of(
    config: Config, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    odd = replace(config, dataset=replace(config.dataset, token="xqzzyj"))
    run.run(odd, tmp_path / "run", [])
    assert "dataset.token=xqzzyj is" in caplog.text


def test_a_diverged_run_fails_and_keeps_its_last_good_checkpoint(config: Config, tmp_path: Path) -> None:
    wild = replace(config, train=replace(config.train, lr=1e30, checkpoint_every=1, log_every=1))
    for _ in range(2):  # when it is not trained again, too
        with pytest.raises(TrainingDiverged, match=r"step \d of 4"):
            run.run(wild, tmp_path / "run", [])
        assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "diverged"
        (checkpoint,) = (tmp_path / "run" / "train" / "checkpoints").iterdir()
        assert checkpoint.name == "step_000001.safetensors"
        shutil.rmtree(tmp_path / "run")


def test_a_full_disk_is_one_message_and_the_next_attempt_goes_on(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "somewhere.png")

    with monkeypatch.context() as patch:
        patch.setattr("dbexp.sample.png.save", full)
        with pytest.raises(ConfigError, match=r"somewhere\.png: No space left on device; free some space"):
            run.run(config, tmp_path / "run", [])
    assert not list(Path(str(config.store)).glob("prior/*/*/manifest.json"))
    assert run.run(config, tmp_path / "run", [])


def test_evaluation_fails_before_training_when_a_backbone_is_not_there(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "train", lambda *_: pytest.fail("trained for nothing"))
    dino = replace(config.evaluate.dino, weights=str(tmp_path / "none.pt"))
    wrong = replace(config, evaluate=replace(config.evaluate, dino=dino))
    with pytest.raises(ConfigError, match=r"evaluate\.dino\.weights"):
        run.run(wrong, tmp_path / "run", [])


def test_an_inpainting_checkpoint_is_not_trained(config: Config, weights: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(weights, tmp_path / "inpainting"))
    settings = folder / "unet" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "in_channels": 9}))
    with pytest.raises(ConfigError, match=r"model\.path=.*inpainting: an inpainting checkpoint, which is not trained"):
        run.run(replace(config, model=replace(config.model, path=str(folder))), tmp_path / "run", [])
    assert not list(Path(str(config.store)).glob("prior"))


def test_ctrl_c_on_the_command_line_saves_and_the_same_command_goes_on(overrides: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dbexp", *overrides, "train.steps=400", "train.log_every=1"]
    source = str(Path(run.__file__).resolve().parents[1])
    with subprocess.Popen(
        [*command, "hydra.run.dir=run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": source},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "parameters" in line:  # training has begun
                process.send_signal(signal.SIGINT)
    assert process.returncode == 128 + signal.SIGINT, "".join(lines)
    assert "the same command goes on from there" in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "stopped"
    states = list((tmp_path / "store").glob("packs/*.pt"))
    assert len(states) == 1


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the DreamBooth photographs are not here")
def test_real_photographs(config: Config, tmp_path: Path) -> None:
    real = replace(config, dataset=replace(config.dataset, path=str(PHOTOS / "dog3")))
    values = run.run(real, tmp_path / "run", [])
    assert np.isfinite(values["dino_real"]) and np.isfinite(values["dino"])
    assert (
        json.loads((tmp_path / "run" / "evaluate" / "metrics.json").read_text())["config"]["dataset"]["name"] == "dog3"
    )


def test_prompts_of_ones_own_are_sampled_in_order(config: Config, tmp_path: Path) -> None:
    assert list(sample_request(config).groups) == [
        "a sks dog in the snow",
        "a red sks dog",
        "a sks dog in a chef outfit",
    ]
