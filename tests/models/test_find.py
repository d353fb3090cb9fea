"""A checkpoint is known by the files that are loaded, and refused where it is none of its family."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from huggingface_hub.utils import filter_repo_objects

from dbexp.config.families import FAMILIES
from dbexp.models import unfit
from dbexp.models.unfit import family_of
from tests import builders
from tests.models.checkpoints import (
    ENCODERS,
    POINTER,
    Checkpoints,
    as_variant,
    change,
    cut,
    original,
    sharded,
    weights,
)


def as_named_here(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the words that transformers puts at other places in files than in models that see."""
    return {name.replace("language_model.", "").replace("model.", ""): value for name, value in tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
class TestVariants:
    def test_a_variant_is_another_model(self, checkpoints: Checkpoints, family: str) -> None:
        folder = checkpoints.copy(family)
        plain = checkpoints.open(family).identity
        parts = ["vae", FAMILIES[family].denoiser, *ENCODERS[family]]
        for part in parts:
            as_variant(weights(folder / part), "fp16")
        assert checkpoints.open(family).identity == plain, "files that are not loaded are no part of it"
        half = checkpoints.open(family, variant="fp16")
        assert half.identity != plain
        for part in parts:
            expected = as_named_here(safetensors.torch.load_file(next((folder / part).glob("*.fp16.safetensors"))))
            values = as_named_here({name: value.float() for name, value in half.part(part).state_dict().items()})
            shared = values.keys() & expected.keys()
            assert shared and all(torch.equal(values[name], expected[name].float()) for name in shared)

    def test_parts_without_it_take_their_plain_files_and_say_so_once(
        self, checkpoints: Checkpoints, family: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder, denoiser = checkpoints.copy(family), FAMILIES[family].denoiser
        plain = checkpoints.open(family).identity
        as_variant(weights(folder / denoiser), "non_ema")
        with caplog.at_level(logging.WARNING, unfit.__name__):
            mixed = checkpoints.open(family, variant="non_ema")
            assert checkpoints.open(family, variant="non_ema").identity == mixed.identity != plain
        (message,) = [record.message for record in caplog.records if record.name == unfit.__name__]
        assert message.startswith("model.variant=non_ema: vae") and message.endswith("the plain ones are taken")
        assert denoiser not in message
        mixed.part(denoiser)
        mixed.part("vae")
        mixed.stock_pipeline(None)

    def test_one_that_is_nowhere(self, checkpoints: Checkpoints, family: str) -> None:
        folder = checkpoints.copy(family)
        expected = f"model.variant=fp8: {folder} has no such weights; give null for the plain ones"
        assert checkpoints.problems(family, variant="fp8") == [expected]
        as_variant(weights(folder / "vae"), "fp16")
        assert "it has fp16, and null" in checkpoints.problems(family, variant="fp8")[0]

    def test_only_halves_without_a_variant(self, checkpoints: Checkpoints, family: str) -> None:
        folder, denoiser = checkpoints.copy(family), FAMILIES[family].denoiser
        for part in ("vae", denoiser):
            path = weights(folder / part)
            as_variant(path, "fp16")
            path.unlink()
        assert checkpoints.problems(family) == [
            f"model.variant=null: vae and {denoiser} of {folder} have only fp16 weights; give model.variant=fp16"
        ]


class TestIdentity:
    @pytest.mark.parametrize("family", [name for name in FAMILIES if name != "sd"])
    @pytest.mark.parametrize("name", ["model_index.json", "tokenizer/tokenizer_config.json"])
    def test_whole_pipelines(self, checkpoints: Checkpoints, family: str, name: str) -> None:
        folder = checkpoints.copy(family)
        plain = checkpoints.open(family).identity
        (folder / name).write_text((folder / name).read_text() + " ")
        assert checkpoints.open(family).identity != plain

    @pytest.mark.parametrize("family", ["flux2_klein", "flux2", "z_image"])
    def test_chat_templates(self, checkpoints: Checkpoints, family: str) -> None:
        folder = checkpoints.copy(family)
        plain = checkpoints.open(family).identity
        (template,) = (folder / "tokenizer").glob("chat_template.*")
        template.write_text(template.read_text() + " ")
        assert checkpoints.open(family).identity != plain

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.fp16.safetensors", "notes.safetensors", "x/y.bin"])
    def test_weights_that_nothing_loads(self, checkpoints: Checkpoints, name: str) -> None:
        folder = checkpoints.copy("sd")
        plain = checkpoints.open("sd").identity
        path = folder / "text_encoder" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"other weights")
        assert checkpoints.open("sd").identity == plain

    def test_pointers_of_weights_that_nothing_loads(self, checkpoints: Checkpoints) -> None:
        """A clone without its large files, of which one variant was fetched."""
        folder = checkpoints.copy("sd")
        for part in ("unet", "text_encoder"):
            path = weights(folder / part)
            path.with_name(f"{path.stem}.fp16.safetensors").write_bytes(POINTER)
        model = checkpoints.open("sd")
        assert not model.crowded
        assert model.part("unet").state_dict()

    def test_shards_are_all_of_it(self, checkpoints: Checkpoints) -> None:
        folder = checkpoints.copy("sd")
        sharded(weights(folder / "unet"))
        whole = checkpoints.open("sd")
        assert whole.part("unet").state_dict().keys() == builders.model().part("unet").state_dict().keys()
        second = folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors"
        content = second.read_bytes()
        second.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert checkpoints.open("sd").identity != whole.identity


PAIRS = [*pairwise(FAMILIES), *pairwise(reversed(FAMILIES))]
"""Every family with its neighbours in the table, in both orders; the rest is in `test_pipelines`."""


class TestOtherFamilies:
    @pytest.mark.parametrize(("family", "other"), PAIRS)
    def test_a_family_that_it_is_not(self, checkpoints: Checkpoints, family: str, other: str) -> None:
        (problem,) = checkpoints.problems(family, original(other))
        assert "not a " in problem and f"model.family={other}" in problem

    def test_pipelines(self) -> None:
        names = {
            "StableDiffusionPipeline": "sd",
            "StableDiffusionInpaintPipeline": "sd",
            "StableDiffusionXLImg2ImgPipeline": "sdxl",
            "Flux2KleinPipeline": "flux2_klein",
            "ZImagePipeline": "z_image",
            "FluxImg2ImgPipeline": "flux",
            "FluxFillPipeline": None,
            "StableDiffusion3InpaintPipeline": "sd3",
            "Flux2Pipeline": "flux2",
            "": None,
        }
        assert {name: family_of(name) for name in names} == names

    def test_single_files(self, checkpoints: Checkpoints, tmp_path: Path) -> None:
        file = tmp_path / "model.safetensors"
        cases = {
            "conditioner.embedders.1.model.weight": ("sd", "model.family=sdxl covers those"),
            "cond_stage_model.transformer.weight": ("sdxl", "model.family=sd covers those"),
            "unet.to_q.lora_A.weight": ("sd", "holds a LoRA; give the checkpoint that it was trained on"),
            "lora_unet_x.lora_down.weight": ("sdxl", "holds a LoRA"),
        }
        for name, (family, expected) in cases.items():
            safetensors.torch.save_file({name: torch.zeros(1)}, file)
            (problem,) = checkpoints.problems(family, file)
            assert problem.startswith(f"model.path={file}: ") and expected in problem
        file.write_bytes(POINTER)
        (problem,) = checkpoints.problems("sd", file)
        assert "(it is a pointer of Git LFS" in problem


class TestOtherVae:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_pipeline(self, checkpoints: Checkpoints, family: str) -> None:
        folder = checkpoints.copy(family)
        assert checkpoints.problems(family, vae=str(folder)) == [
            f"model.vae={folder}: a pipeline, and not a VAE alone; give model.vae={folder / 'vae'}"
        ]
        assert checkpoints.open(family, vae=str(folder / "vae")).identity == checkpoints.open(family).identity

    def test_a_repository_of_the_hub(
        self, checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a pipeline's no weights are fetched; a VAE's own are, whatever lies beside them."""
        weights_name = "diffusion_pytorch_model.safetensors"
        names = [f"vae/{weights_name}", "sdxl_vae.safetensors", weights_name]
        fetched: list[str] = []

        def download(repository: str, allow_patterns: list[str]) -> str:
            fetched.extend(filter_repo_objects(names, allow_patterns=allow_patterns))
            folder = tmp_path / repository
            folder.mkdir(parents=True)
            (folder / "model_index.json").write_text("{}")
            return str(folder)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        checkpoints.copy("sd")
        (problem,) = checkpoints.problems("sd", vae="owner/pipeline")
        assert problem == (
            "model.vae=owner/pipeline: a pipeline, and not a VAE alone; give the folder `vae` of a downloaded one"
        )
        assert fetched == names[2:]

    def test_a_single_file(self, checkpoints: Checkpoints) -> None:
        path = weights(checkpoints.copy("sd") / "vae")
        (problem,) = checkpoints.problems("sd", vae=str(path))
        assert problem.startswith(f"model.vae={path}: a single file; give the folder of a VAE")

    def test_damage_is_told_of_it(self, checkpoints: Checkpoints, tmp_path: Path) -> None:
        checkpoints.copy("sd")
        vae = Path(shutil.copytree(original("sd") / "vae", tmp_path / "other"))
        cut(weights(vae))
        (problem,) = checkpoints.problems("sd", vae=str(vae))
        assert problem.startswith(f"model.vae={vae}: {weights(vae)} is damaged")

    @pytest.mark.parametrize("values", [{"scaling_factor": 0.13025}, {"latent_channels": 16}])
    def test_other_latents(self, checkpoints: Checkpoints, tmp_path: Path, values: dict[str, Any]) -> None:
        checkpoints.copy("sd")
        vae = Path(shutil.copytree(original("sd") / "vae", tmp_path / "other"))
        change(vae / "config.json", **values)
        (name,) = values
        problems = checkpoints.problems("sd", vae=str(vae))
        assert f"model.vae={vae}: its {name} is {values[name]}, that of the checkpoint's own VAE" in problems[-1]
