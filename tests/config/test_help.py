"""`dbexp --help` explains every parameter and lists every option."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from omegaconf import DictConfig

import dbexp
from dbexp.config import groups, help, schema
from dbexp.config.fields import rule_of
from dbexp.config.schema import Config

CONF = groups.conf_dir()
CLASSES = [cls for cls in vars(schema).values() if dataclasses.is_dataclass(cls) and isinstance(cls, type)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_is_explained(cls: type) -> None:
    said = help.docs(cls)
    assert list(said) == [field.name for field in dataclasses.fields(cls)]
    assert all(sentence[-1] in ".)" and len(sentence) > 5 for sentence in said.values())


def test_docs_are_the_strings_under_the_fields() -> None:
    assert help.docs(schema.LoraConfig)["rank"] == "Rank r of every adapter."


def test_the_text_holds_every_parameter_with_type_value_and_meaning(composed: Callable[..., DictConfig]) -> None:
    lines = help.text(composed("model=sd15", "lora.rank=7"), [CONF], width=10_000).splitlines()

    def expect(cls: type, prefix: str) -> None:
        hints = get_type_hints(cls)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for name, meaning in help.docs(cls).items():
            if dataclasses.is_dataclass(hints[name]):
                at, rule = lines.index(prefix + name), ""
                expect(hints[name], f"{prefix}{name}.")
            else:
                (at,) = (i for i, line in enumerate(lines) if line.startswith(f"  {prefix}{name}: "))
                rule = rule_of(fields[name]).sentence()
            assert lines[at + 1].strip() == f"{meaning} {rule}".strip()

    expect(Config, "")
    assert "      Rank r of every adapter. At least 1." in lines
    assert "      Decay of the first moment. At least 0 and less than 1." in lines
    assert "      How pictures are resized. One of bilinear, bicubic, lanczos." in lines
    assert any("offline: a run folder to upload later; online: live; disabled: none." in line for line in lines)
    assert "  lora.rank: int = 7" in lines
    assert "  lora.alpha: float | null = null" in lines
    assert "  lora.text_encoder: bool = false" in lines
    assert "  train.lr: float = 0.0001" in lines
    assert "  sample.resolution: int = 512" in lines  # an interpolation, resolved
    assert "  tracking.tags: list[str] = []" in lines
    assert "  evaluate.clip.kwargs: dict[str, Any] = {}" in lines
    assert "  sample.prompts: Any = auto" in lines


def test_a_value_that_must_be_given_says_so(composed: Callable[..., DictConfig]) -> None:
    assert "  model.path: str = ??? (must be given)" in help.text(composed("model=custom"), [CONF], width=100)


@pytest.mark.parametrize("width", [72, 100])
def test_lines_fit(composed: Callable[..., DictConfig], width: int) -> None:
    _, _, described = help.text(composed("model=sd15"), [CONF], width).partition("GROUPS")
    assert max(map(len, described.splitlines())) <= width


def test_the_command_from_anywhere_without_torch(tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "ours.yaml").write_text("name: ours\npath: a$b\n")
    code = (
        "import sys; sys.argv = ['dbexp', '--help', '--config-dir', 'mine', 'model=ours']\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
        "from dbexp.pipeline.command import main; main()"
    )
    env: dict[str, Any] = {**os.environ, "PYTHONPATH": str(Path(dbexp.__file__).parents[1]), "COLUMNS": "100"}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("dbexp: DreamBooth-LoRA experiments")
    first = next(number for number, line in enumerate(lines) if line.startswith("  model  "))
    models = lines[first].split()
    for line in lines[first + 1 :]:
        if not line.startswith("      "):
            break
        models += line.split()
    assert models[:2] == ["model", "custom"] and {"ours", "random", "sd15"} <= set(models)
    assert "  model.path: str = a$b" in lines
    assert "      Rank r of every adapter. At least 1." in lines
    assert lines[-1] == "False"
