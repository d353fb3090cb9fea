"""ARCHITECTURE.md names every file, each at its place, and its order of imports is the one that is tested."""

from __future__ import annotations

import re
from pathlib import Path

from tests.test_imports import ORDER, ROOT, files

TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def tree() -> set[Path]:
    """The paths of the annotated tree: four spaces are a level, a folder ends with a slash."""
    (block,) = re.findall(r"^```\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE)
    paths: set[Path] = set()
    folders: list[Path] = []
    for line in block.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 4
        folders = folders[:depth]
        path = Path(*folders[-1:], name)
        paths.add(path)
        if name.endswith("/"):
            folders.append(path)
    return paths


def test_what_the_tree_names_is_there() -> None:
    assert [str(path) for path in sorted(tree()) if not (ROOT / path).exists()] == []


def test_every_file_is_in_the_tree() -> None:
    paths = tree()
    whole = {path for path in paths if not any(other != path and other.is_relative_to(path) for other in paths)}
    """A folder of which no file is named stands for all that is in it."""
    modules = (path.relative_to(ROOT) for path in files(ROOT).values() if path.name != "__init__.py")
    assert [str(path) for path in modules if not any(path.is_relative_to(entry) for entry in whole)] == []


def test_the_order_is_the_one_that_is_tested() -> None:
    (shown,) = re.findall(r"^    (hydra_plugins >.*?)\n\n", TEXT, flags=re.DOTALL | re.MULTILINE)
    levels = [{name.strip() for name in level.split(",")} for level in shown.split(">")]
    short = [{name.removeprefix("dbexp.").replace("dbexp", "__init__") for name in level} for level in ORDER]
    assert levels == short
