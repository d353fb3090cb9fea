"""A finished sweep again: nothing is computed, so nothing is imported that only computing needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dbexp
from tests.sweeps import tiny

NETWORKS = {"diffusers", "transformers", "open_clip", "timm", "lpips", "torchvision"}

PROGRAM = """
import sys
from dbexp.pipeline.command import main
main()
print("imported", *sorted(set(sys.modules) & set({networks!r})))
"""


def sweep(folder: Path, *words: str) -> str:
    """The last line of a sweep in a process of its own: this one may hold networks that an earlier test loaded."""
    source = str(Path(dbexp.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); sys.argv[1:] = {['-m', *words]!r}\n"
    command = [sys.executable, "-c", code + PROGRAM.format(networks=NETWORKS)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


def test_no_library_of_networks_is_imported(tmp_path: Path) -> None:
    swept = [*tiny(tmp_path / "store"), "lora.rank=2,3", "sample.images_per_prompt=1", "sample.class_images=2"]
    assert sweep(tmp_path, "hydra.sweep.dir=first", *swept) == f"imported {' '.join(sorted(NETWORKS))}"
    assert sweep(tmp_path, "hydra.sweep.dir=again", *swept) == "imported"
    assert (tmp_path / "again" / "results.csv").read_bytes() == (tmp_path / "first" / "results.csv").read_bytes()
