"""Imports run one way, folder by folder and file by file, and each heavy library is known to one corner of the package.

ARCHITECTURE.md has the order in words.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

import dbexp

ROOT = Path(dbexp.__file__).parents[1]

# from the top of the program to the ground; a file may import its own folder and the lines below its own
ORDER = (
    {"hydra_plugins"},
    {"dbexp.estimate"},
    {"dbexp.__main__"},
    {"dbexp"},
    {"dbexp.api"},
    {"dbexp.pipeline", "dbexp.generate", "dbexp.export"},
    {"dbexp.compare"},
    {"dbexp.tracking"},
    {"dbexp.runs"},
    {"dbexp.train", "dbexp.sample"},
    {"dbexp.evaluate", "dbexp.models", "dbexp.dataset"},
    {"dbexp.config", "dbexp.storybook"},
    {"dbexp.core"},
)

# library -> the folders and files that may know it
CORNERS = {
    "accelerate": ("dbexp.core.device",),
    "diffusers": ("dbexp.models", "dbexp.storybook"),
    "transformers": ("dbexp.models", "dbexp.storybook"),
    "lpips": ("dbexp.evaluate.backbones", "dbexp.storybook"),
    "open_clip": ("dbexp.evaluate.backbones", "dbexp.storybook"),
    "timm": ("dbexp.evaluate.backbones", "dbexp.storybook"),
    "wandb": ("dbexp.tracking",),
    "wandb_workspaces": ("dbexp.tracking",),
    "plotly": ("dbexp.compare.page",),
    "jinja2": ("dbexp.compare.page",),
    "pandas": ("dbexp.api",),
    "hydra": ("dbexp.pipeline.command", "dbexp.config", "dbexp.api", "hydra_plugins"),
    "optuna": ("hydra_plugins",),
    "ray": ("hydra_plugins",),
    "submitit": ("hydra_plugins",),
}

Graph = Mapping[str, set[str]]
"""Module -> the modules that it imports anywhere in it."""


def files(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package and of its plugins."""
    paths = [*(root / "dbexp").rglob("*.py"), *(root / "hydra_plugins").rglob("*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def imported(path: Path) -> set[str]:
    """Full names of everything that a file imports, also inside functions; what only a type checker reads counts."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: write out `from dbexp...` in place of a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def graph(root: Path) -> Graph:
    """Who imports whom among the files below a root."""
    modules = files(root)

    def target(name: str) -> str | None:
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name or None

    return {
        module: {other for name in imported(path) if (other := target(name)) is not None and other != module}
        for module, path in modules.items()
    }


def folder(module: str) -> str:
    """`dbexp.train` for dbexp.train.loop, `dbexp.api` for itself, `hydra_plugins` for all of them."""
    parts = module.split(".")
    return parts[0] if parts[0] == "hydra_plugins" else ".".join(parts[:2])


def climbs(arrows: Graph) -> list[str]:
    """Arrows that do not run down."""
    level = {name: number for number, names in enumerate(ORDER) for name in names}
    return [
        f"{module} imports {other}, which stands {'beside' if level[a] == level[b] else 'above'} it"
        for module, others in sorted(arrows.items())
        for other in sorted(others)
        if (a := folder(module)) != (b := folder(other)) and level[a] >= level[b]
    ]


def circles(arrows: Graph) -> list[str]:
    """One line for each way back to a module that is still being visited, depth first."""
    lines: list[str] = []
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            lines.append(" -> ".join((*trail[trail.index(module) :], module)))
        elif module not in done:
            for other in sorted(arrows[module]):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(arrows):
        visit(module, ())
    return lines


def test_every_folder_has_its_level() -> None:
    folders = {folder(module) for module in files(ROOT)}
    assert folders == set.union(*ORDER)
    entries = {path.stem for path in (ROOT / "dbexp").iterdir() if not path.name.startswith(("_", "."))}
    assert len(entries - {"conf", "py"}) <= 16, "the listing should read as the pipeline"


def test_imports_run_down() -> None:
    assert climbs(graph(ROOT)) == []


def test_there_is_no_circle() -> None:
    assert circles(graph(ROOT)) == []


def planted(root: Path, sources: Mapping[str, str]) -> Graph:
    for name, source in sources.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return graph(root)


@pytest.mark.parametrize(
    ("sources", "climb"),
    [
        ({"dbexp/core/a.py": "from dbexp.train.b import c", "dbexp/train/b.py": ""}, True),
        ({"dbexp/sample/a.py": "from dbexp.train import b", "dbexp/train/b.py": ""}, True),
        ({"dbexp/train/a.py": "def f():\n    import hydra_plugins.p.q", "hydra_plugins/p/q.py": ""}, True),
        ({"dbexp/train/a.py": "from dbexp.core import b", "dbexp/core/b.py": "", "dbexp/core/__init__.py": ""}, False),
    ],
)
def test_a_planted_climb_is_seen(tmp_path: Path, sources: dict[str, str], climb: bool) -> None:
    assert bool(climbs(planted(tmp_path, sources))) == climb


@pytest.mark.parametrize(
    ("sources", "circle"),
    [
        ({"dbexp/core/a.py": "from dbexp.core import b", "dbexp/core/b.py": "import dbexp.core.a"}, True),
        ({"hydra_plugins/a.py": "import hydra_plugins.b", "hydra_plugins/b.py": "from hydra_plugins import a"}, True),
        ({"dbexp/core/__init__.py": "from dbexp.core.a import x", "dbexp/core/a.py": "from dbexp.core import x"}, True),
        ({"dbexp/core/a.py": "from dbexp.core import b", "dbexp/core/b.py": ""}, False),
    ],
)  # fmt: skip
def test_a_planted_circle_is_seen(tmp_path: Path, sources: dict[str, str], circle: bool) -> None:
    assert bool(circles(planted(tmp_path, sources))) == circle


def strangers(names: Iterable[str], module: str) -> list[str]:
    """Libraries of another corner."""
    roots = {name.partition(".")[0] for name in names} & set(CORNERS)
    return sorted(root for root in roots if not f"{module}.".startswith(tuple(f"{home}." for home in CORNERS[root])))


@pytest.mark.parametrize("module", files(ROOT))
def test_libraries_stay_in_their_corner(module: str) -> None:
    assert strangers(imported(files(ROOT)[module]), module) == []


def test_a_planted_stranger_is_seen() -> None:
    assert strangers({"wandb.sdk", "json"}, "dbexp.compare.table") == ["wandb"]
    assert strangers({"wandb.sdk", "json"}, "dbexp.tracking.session") == []


def test_light_modules_do_not_load_torch() -> None:
    light = "config.check config.help core.errors core.store train.lr_schedule pipeline.command".split()
    code = f"import sys; import {', '.join(f'dbexp.{name}' for name in light)}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "False", result.stderr
