"""The model card of a real run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from PIL import Image

from dbexp.export import command
from tests import builders, run_folders


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


def test_a_licence_that_the_hub_has_no_word_for(tmp_path: Path) -> None:
    run = run_folders.really_run().folder.parent
    licence = "licence=other:flux-non-commercial-license"
    command.main([f"run={run}", f"folder={tmp_path / 'out'}", licence, "base=me/base", "check=false", "pictures=0"])
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "flux-non-commercial-license")
    assert "The base model `me/base` is under `flux-non-commercial-license`" in text
