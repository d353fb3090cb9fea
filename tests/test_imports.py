"""Imports point one way, and each heavy library is known to one corner of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dbexp

PACKAGE = Path(dbexp.__file__).parent
STAGES = {"dataset", "prior", "train", "sample", "evaluate", "tracking", "compare"}

# library -> the modules (or packages) that may know it
CORNERS = {
    "diffusers": {"models", "storybook"},
    "transformers": {"models", "storybook"},
    "lpips": {"metrics", "storybook"},
    "open_clip": {"metrics", "storybook"},
    "timm": {"metrics", "storybook"},
    "wandb": {"tracking"},
    "wandb_workspaces": {"tracking"},
    "plotly": {"compare"},
    "jinja2": {"compare"},
    "hydra": {"run", "config", "help", "api"},
}

# from the top of the program to the ground; what is named nowhere is a part: below the stages, above the config
TOP = (
    {"run", "generate", "export", "api", "compare_command"},
    {"sweep", "memory", "dashboard"},
    {"stages", "outcome", "run_pictures"},
    STAGES,
)
GROUND = ({"config"}, {"schema"}, {"errors"})


def corner(path: Path) -> str:
    """`metrics` for dbexp/metrics/dino.py, `train` for dbexp/train.py."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Full names of every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write out `from dbexp...` in place of a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
IDS = [path.relative_to(PACKAGE).as_posix() for path in FILES]


def height(name: str) -> int:
    """How far above the ground a module stands; parts, at 0, may use each other."""
    for up, names in enumerate(reversed(TOP), start=1):
        if name in names:
            return up
    for down, names in enumerate(GROUND, start=1):
        if name in names:
            return -down
    return 0


def test_the_package_is_what_is_looked_at() -> None:
    names = {corner(path) for path in FILES}
    assert set.union(*TOP, *GROUND) <= names
    assert sum(height(name) == 0 for name in names) > 5


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_point_down(path: Path) -> None:
    own = corner(path)
    for name in imported(path):
        root, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if root != "dbexp" or other in ("", own, "__version__"):
            continue
        assert not {own, other} <= STAGES, f"stages do not import one another: {own} imports {other}"
        assert height(own) >= height(other), f"{own} imports {other}, which stands above it"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_libraries_stay_in_their_corner(path: Path) -> None:
    for name in imported(path):
        allowed = CORNERS.get(name.partition(".")[0])
        assert allowed is None or corner(path) in allowed, f"{corner(path)} imports {name}; that belongs to {allowed}"


def test_light_modules_do_not_load_torch() -> None:
    light = "config errors store lr_schedule help run".split()
    code = f"import sys; import {', '.join(f'dbexp.{name}' for name in light)}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert result.stdout.strip() == "False", result.stderr
