"""What Tab offers: groups, options in their folders, parameters, values; the rest is Hydra's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbexp.config.completion import answer, completions
from dbexp.config.groups import conf_dir

KNOWN = {"objective": ["dino", "clip_t", "recommend"]}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dataset=storybook/", [f"dataset=storybook/{name}" for name in ("backpack", "cat", "dog", "dog2", "teapot")]),
        ("-m experiment=recipe", ["experiment=recipe/cloneofsimo", "experiment=recipe/diffusers"]),
        ("experiment/reference/diffusers=with_", ["experiment/reference/diffusers=with_prior"]),
        ("experiment/recipe=d", ["experiment/recipe=diffusers"]),
        ("-m lora=attention,li", ["lora=attention,linear"]),
        ("+model=sdx", ["+model=sdxl"]),
        ("model=sd15 train.optimizer=adamw", ["train.optimizer=adamw", "train.optimizer=adamw8bit"]),
        ("lora.text_encoder=", ["lora.text_encoder=true", "lora.text_encoder=false"]),
        ("objective=dino,re", ["objective=dino,recommend"]),
        ("lr", ["lr_schedule.", "lr_schedule="]),
        ("lora.ra", ["lora.rank="]),
        ("evaluate", ["evaluate.", "evaluate/", "evaluate="]),
        ("evaluate/", ["evaluate/more="]),
        ("h", ["hydra.", "hydra/"]),
        # left to Hydra: what is its own, files, numbers
        ("hydra/launcher=", []),
        ("hydra", []),
        ("dataset.path=/tm", []),
        ("lora.rank=", []),
        ("nonsense=", []),
    ],
)
def test_what_fits_the_last_word(line: str, offered: list[str]) -> None:
    assert completions(f"dbexp {line}", KNOWN) == offered


def test_every_shipped_option_is_offered() -> None:
    for file in conf_dir().glob("*/**/*.yaml"):
        group, *rest = file.relative_to(conf_dir()).with_suffix("").parts
        if group != "hydra":
            assert f"{group}={'/'.join(rest)}" in completions(f"dbexp {group}=", KNOWN)


def test_options_of_a_folder_of_ones_own_are_offered(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "ours.yaml").touch()
    for switch in (f"--config-dir {tmp_path}", f"--config-dir={tmp_path}", f"-cd {tmp_path}"):
        assert completions(f"dbexp {switch} model=o", KNOWN) == ["model=ours"]


def test_only_a_shell_that_asks_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "dbexp lr")
    assert answer(["-sc", "query=bash"], KNOWN) == "lr_schedule. lr_schedule="
    assert answer(["--shell-completion", "query=fish"], KNOWN) == "lr_schedule.\nlr_schedule="
    assert answer(["-sc", "install=bash"], KNOWN) is None
    assert answer(["lora.rank=4"], KNOWN) is None
    monkeypatch.setenv("COMP_LINE", "dbexp lora.rank=")
    assert answer(["-sc", "query=bash"], KNOWN) is None, "Hydra offers the value that it has"
