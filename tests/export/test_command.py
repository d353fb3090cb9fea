"""`dbexp-export`: files that other programs draw the same images with, all of them or none."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dbexp.export import command
from dbexp.models import LoraFile, lora_file
from tests import builders, run_folders

Export = Callable[..., Path]


def test_each_file_gives_the_runs_pictures(export: Export, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export()
    assert {path.name for path in folder.iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "noise-lora-rank-4.safetensors",
        "README.md",
    }
    output = capsys.readouterr().out
    values = dict(re.findall(r"(\S+): (\S+).* PSNR to the run's pictures", output))
    assert values.keys() == {"pytorch_lora_weights.safetensors", "noise-lora-rank-4.safetensors"}
    assert "`noise-lora-rank-4.safetensors` holds the same LoRA" in (folder / "README.md").read_text()
    assert "<lora:noise-lora-rank-4:1> a sks dog" in (folder / "README.md").read_text()
    assert all(value == "identical" or float(value) > 40 for value in values.values())
    (without,) = re.findall(r"without the LoRA: (\S+) dB", output)
    assert float(without) < 36


def test_a_file_that_draws_other_images_is_not_left(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = lora_file.write

    def bad(file: LoraFile, *others: Any) -> None:
        good(replace(file, alphas={part: 8 * alpha for part, alpha in file.alphas.items()}), *others)

    monkeypatch.setattr(lora_file, "write", bad)
    with pytest.raises(SystemExit, match=r"noise-lora-rank-4\.safetensors: stock diffusers draws other pictures"):
        export("format=kohya")
    assert list(tmp_path.iterdir()) == [], "neither the folder nor what was written beside it"


def test_a_check_that_says_nothing_says_so(export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folders.make(tmp_path / "weak", strength=0.0)
    export(f"run={tmp_path / 'weak'}", "format=kohya", "card=false")
    assert "this check says nothing" in capsys.readouterr().out


def test_no_place_of_this_machine_leaves_it(export: Export, tmp_path: Path) -> None:
    made_with = run_folders.config()
    assert Path(made_with.model.path).is_absolute()
    run_folders.make(tmp_path / "run", made_with=made_with)
    folder = export(f"run={tmp_path / 'run'}", "check=false")
    for path in folder.glob("*"):
        assert str(builders.scratch()).encode() not in path.read_bytes()
    with safe_open(folder / "pytorch_lora_weights.safetensors", "pt") as file:
        provenance = json.loads(file.metadata()["dbexp"])
    assert provenance["config"]["model"]["path"] == Path(made_with.model.path).name


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_export_that_is_stopped_leaves_the_folder_as_it_was(
    export: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    signum: signal.Signals,
) -> None:
    def interrupted(*_: object) -> None:
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(signum)

    folder = export("check=false")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(lora_file, "write", interrupted)
    with pytest.raises(SystemExit) as stop:
        export("check=false", "name=other")
    assert stop.value.code == 128 + signum
    assert capsys.readouterr().err == "dbexp-export: stopped; nothing was written; the same command starts over\n"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_an_export_is_never_half_there(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left, replace = tmp_path / ".out.partial", os.replace
    left.mkdir()
    (left / "half.safetensors").touch()

    def stopped(source: Path, target: Path) -> None:
        if target.parent == tmp_path / "out":
            signal.raise_signal(signal.SIGTERM)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(SystemExit) as stop:
        export("check=false")
    assert stop.value.code == 143
    assert capsys.readouterr().err.endswith(f"dbexp-export: stopped; everything is in {tmp_path / 'out'}\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"], "what a killed process left is gone too"
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"README.md", "pytorch_lora_weights.safetensors"}


def test_mistakes_are_one_message(export: Export, run: Path, tmp_path: Path) -> None:
    for words, says in (
        (["format=onnx", "pictures=-1"], "2 problems"),
        ([f"run={tmp_path}/nowhere"], "there is no such folder"),
        (["model=/nowhere"], "there is no such folder or file"),
    ):
        with pytest.raises(SystemExit) as stop:
            export(*words)
        assert str(stop.value).startswith("dbexp-export: ") and says in str(stop.value)
    with pytest.raises(SystemExit, match="choose another place with folder=FOLDER"):
        command.main([f"run={run}", f"folder={run / 'result.json' / 'x'}", "check=false"])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
@pytest.mark.parametrize("check", ["true", "false"])
def test_a_lora_of_no_numbers_is_not_exported(
    run: Path, export: Export, tmp_path: Path, value: float, check: str
) -> None:
    """Its pictures would be black, and those of the written file too: identical."""
    if value == 3e38 and check == "false":
        pytest.skip("finite: only a drawn picture tells")
    spoilt = tmp_path / "spoilt"
    shutil.copytree(run, spoilt)
    path = spoilt / "train" / "lora.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    save_file({key: torch.full_like(tensor, value) for key, tensor in tensors.items()}, path, metadata)
    with pytest.raises(SystemExit, match="NaN") as stop:
        export(f"run={spoilt}", f"check={check}")
    assert str(stop.value).startswith("dbexp-export: ")
    assert list(tmp_path.iterdir()) == [spoilt], "nothing is left"


@pytest.mark.parametrize("check", ["true", "false"])
def test_a_lora_of_another_architecture_is_not_exported(run: Path, export: Export, tmp_path: Path, check: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(run, other)
    path = other / "train" / "lora.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # no mapping
    wider = {key: torch.cat([tensor] * 2, dim=1) if "lora_A" in key else tensor for key, tensor in tensors.items()}
    save_file(wider, path, metadata)
    with pytest.raises(SystemExit, match=r"does not fit the model tiny: \S+ is \d+ x \d+ there, \d+ x \d+ here"):
        export(f"run={other}", f"check={check}")
    assert list(tmp_path.iterdir()) == [other], "nothing is left"


def test_more_steps_than_the_sampler_has(export: Export, run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"check_steps=999: must be at most 998"):
        command.main([f"run={run}", f"folder={tmp_path / 'out'}", "check_steps=999"])
    assert not list(tmp_path.iterdir())
