"""notebook.ipynb: its cells are Python, its overrides compose, and (slow) it runs from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dbexp
from tests import run_folders

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebook.ipynb"


def cells() -> list[tuple[list[str], str]]:
    """(tags, source) of every code cell, in order, without lines that only a notebook understands."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            plain = "\n".join(line for line in lines if not line.startswith("%"))
            found.append((cell["metadata"].get("tags", []), plain))
    return found


def parameters() -> dict[str, Any]:
    """What the cell of parameters sets."""
    ((_, source),) = [cell for cell in cells() if "parameters" in cell[0]]
    values: dict[str, Any] = {}
    exec(source, values)
    return values


def test_it_is_python_without_outputs() -> None:
    for number, (_, source) in enumerate(cells()):
        compile(source, f"cell {number}", "exec")
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in notebook["cells"])


def test_its_overrides_compose() -> None:
    cfg = dbexp.compose(parameters()["OVERRIDES"])
    assert (cfg.model.name, cfg.dataset.name) == ("sd15", "dog3")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # a notebook shows pictures, and leaves them open
@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for tags, source in cells():
        exec(compile(source, "cell", "exec"), names)
        if "parameters" in tags:
            names["OVERRIDES"] = [word for word in run_folders.overrides() if not word.startswith("lora.rank")]
    assert sorted(names["swept"].results["lora.rank"]) == [4, 16]
    assert names["swept"].results["dino"].notna().all()
    assert sorted(names["taken"]["lora.rank"]) == [4, 16]
    assert (tmp_path / "generated" / "notebook" / "contact_sheet.png").is_file()
    assert {"pytorch_lora_weights.safetensors", "README.md"} <= set(names["done"].files)
    card = tmp_path / "exported" / "notebook" / "README.md"
    assert "dB" in card.read_text(encoding="utf-8"), "an export whose files draw other images fails"
