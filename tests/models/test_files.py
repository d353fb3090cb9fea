"""Files that are not whole are refused by name before anything is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dbexp.config.families import FAMILIES
from dbexp.core.errors import ConfigError
from dbexp.models.files import damage
from tests.models.checkpoints import (
    PARTS,
    POINTER,
    Checkpoints,
    change,
    cut,
    dangling,
    empty,
    pointer,
    sharded,
    weights,
)

DAMAGES: dict[Callable[[Path], None], str] = {
    cut: "is damaged: it has ",
    pointer: "is a pointer of Git LFS, not the file itself; `git lfs pull` brings it",
    empty: "is empty",
    dangling: "is missing",
}


class TestDamage:
    @pytest.mark.parametrize("spoil", DAMAGES, ids=lambda spoil: spoil.__name__)
    @pytest.mark.parametrize(("family", "part"), PARTS)
    def test_weights(self, checkpoints: Checkpoints, family: str, part: str, spoil: Callable[[Path], None]) -> None:
        path = weights(checkpoints.copy(family) / part)
        spoil(path)
        (problem,) = checkpoints.problems(family)
        assert problem.startswith(f"model.path={checkpoints.folder / family}: {path} {DAMAGES[spoil]}")

    @pytest.mark.parametrize(("family", "part"), PARTS)
    def test_none(self, checkpoints: Checkpoints, family: str, part: str) -> None:
        folder = checkpoints.copy(family) / part
        weights(folder).unlink()
        assert checkpoints.problems(family) == [f"model.path={checkpoints.folder / family}: {folder} has no weights"]

    @pytest.mark.parametrize(("family", "part"), PARTS)
    def test_shards(self, checkpoints: Checkpoints, family: str, part: str) -> None:
        index = sharded(weights(checkpoints.copy(family) / part))
        lost = next(index.parent.glob("*-00002-of-00002.safetensors"))
        lost.unlink()
        assert checkpoints.problems(family) == [f"model.path={checkpoints.folder / family}: {lost} is missing"]
        for content in ("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', "{}"):
            index.write_text(content)
            (problem,) = checkpoints.problems(family)
            assert problem.startswith(f"model.path={checkpoints.folder / family}: {index} is ")

    @pytest.mark.parametrize("family", FAMILIES)
    def test_everything_at_once(self, checkpoints: Checkpoints, family: str) -> None:
        folder, denoiser = checkpoints.copy(family), FAMILIES[family].denoiser
        cut(weights(folder / denoiser))
        pointer(weights(folder / "text_encoder"))
        change(folder / "scheduler" / "scheduler_config.json", _class_name="EDMEulerScheduler")
        shutil.rmtree(folder / "tokenizer")
        (folder / "tokenizer").mkdir()
        problems = checkpoints.problems(family)
        assert len(problems) == 4
        assert all(problem.startswith(f"model.path={folder}: ") for problem in problems)

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("name", ["scheduler", "tokenizer"])
    def test_empty_folders(self, checkpoints: Checkpoints, family: str, name: str) -> None:
        folder = checkpoints.copy(family) / name
        shutil.rmtree(folder)
        folder.mkdir()
        (problem,) = checkpoints.problems(family)
        assert problem == f"model.path={folder.parent}: {folder}" + (
            "/scheduler_config.json is missing or damaged"
            if name == "scheduler"
            else " holds no tokenizer; expected tokenizer.json or vocab.json and merges.txt"
        )

    @pytest.mark.parametrize("family", ["flux2_klein", "z_image"])
    def test_a_tokenizer_that_knows_no_chat(self, checkpoints: Checkpoints, family: str) -> None:
        folder = checkpoints.copy(family)
        (template,) = (folder / "tokenizer").glob("chat_template.*")
        template.unlink()
        (problem,) = checkpoints.problems(family)
        assert problem == (
            f"model.path={folder}: {folder / 'tokenizer'} has no chat template; expected chat_template.jinja"
        )

    def test_tensors_that_are_not_there(self, checkpoints: Checkpoints) -> None:
        """The libraries would fill them with random numbers, and say so in a log."""
        for part, name in (("unet", "conv_in.weight"), ("text_encoder", "final_layer_norm.weight")):
            path = weights(checkpoints.copy("sd") / part)
            tensors = safetensors.torch.load_file(path)
            (lost,) = [key for key in tensors if key.endswith(name)]
            del tensors[lost]
            safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
            with pytest.raises(ConfigError, match=rf"the weights in .*{part} lack .*{name}"):
                checkpoints.open("sd").part(part)

    def test_tensors_of_another_shape(self, checkpoints: Checkpoints) -> None:
        folder = checkpoints.copy("sd")
        change(folder / "unet" / "config.json", block_out_channels=[16, 48])
        with pytest.raises(ConfigError, match=r"/unet (cannot be loaded|lack)"):
            checkpoints.open("sd").part("unet")

    def test_pickles(self, tmp_path: Path) -> None:
        path = tmp_path / "pytorch_model.bin"
        torch.save({"a": torch.zeros(3)}, path)
        assert damage(path) is None
        for content, expected in (
            (POINTER, "is a pointer of Git LFS"),
            (b"", "is empty"),
            (path.read_bytes()[:-40], "is damaged"),
        ):
            path.write_bytes(content)
            assert (damage(path) or "").startswith(expected)
