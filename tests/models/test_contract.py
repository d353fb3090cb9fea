"""What a family owns is named in its file alone; the defaults of the contract; text first."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbexp.config.families import FAMILIES
from tests.test_imports import ROOT

SPEAKERS = ("train", "sample", "evaluate", "export", "generate", "compare", "tracking", "runs", "pipeline")
"""Folders that speak to a model through the contract."""
PARTS = {"unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "scheduler"}
PARTS |= {part for family in FAMILIES.values() for part in (family.denoiser, *family.encoders)}
ARGUMENTS = {
    "added_cond_kwargs", "callback_on_step_end", "encoder_hidden_states", "generator", "guidance_scale", "height",
    "image", "mask_image", "negative_prompt", "negative_prompt_embeds", "num_inference_steps", "output_type", "prompt",
    "prompt_embeds", "strength", "true_cfg_scale", "width",
}  # fmt: skip


def named(source: str) -> Iterator[str]:
    """What a source names of a family's: parts, types of times, arguments of pipelines."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in PARTS:
            yield f"line {node.lineno}: the part {node.value!r}"
        if isinstance(node, ast.Attribute) and node.attr in PARTS:
            # `lora.text_encoder` is a setting, which says whether the parts that read text are adapted
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            if (owner, node.attr) != ("lora", "text_encoder"):
                yield f"line {node.lineno}: the part {node.attr}"
        for name in (getattr(node, field, None) for field in ("id", "attr", "arg")):
            if isinstance(name, str) and ("timestep" in name or "sigma" in name):
                yield f"line {getattr(node, 'lineno', 0)}: the times {name}"
        if isinstance(node, ast.Call) and "pipe" in ast.unparse(node.func):
            for keyword in node.keywords:
                if keyword.arg in ARGUMENTS:
                    yield f"line {node.lineno}: the argument {keyword.arg} of {ast.unparse(node.func)}"


def spoken() -> list[Path]:
    paths = [path for folder in SPEAKERS for path in sorted((ROOT / "dbexp" / folder).rglob("*.py"))]
    return [path for path in paths if "backbones" not in path.parts]  # networks of their own


@pytest.mark.parametrize("path", spoken(), ids=lambda path: path.relative_to(ROOT / "dbexp").as_posix())
def test_nobody_else_names_what_a_family_owns(path: Path) -> None:
    assert list(named(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "offends"),
    [
        ("model.part('unet')", True),
        ("model.text_encoder(ids)", True),
        ("training.lora.text_encoder", False),
        ("draw.timesteps.to(device)", True),
        ("def predict(noisy, timesteps): pass", True),
        ("pipe(num_inference_steps=3)", True),
        ("self._pipeline()(prompt=['a'])", True),
        ("Sampling(guidance_scale=3.0)", False),
        ("model.part(model.family.denoiser)", False),
    ],
)
def test_a_planted_name_is_seen(source: str, offends: bool) -> None:
    assert bool(list(named(source))) == offends
