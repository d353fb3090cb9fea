"""A finished sweep again: nothing is computed, so nothing is imported that only computing needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dbexp
from tests.sweeps import dbexp_command, tiny

NETWORKS = {"diffusers", "transformers", "open_clip", "timm", "lpips", "torchvision"}

AGAIN = """
import sys
from dbexp.run import main
main()
print("imported", *sorted(set(sys.modules) & set({networks!r})))
"""


def test_no_library_of_networks_is_imported(tmp_path: Path) -> None:
    swept = [*tiny(tmp_path / "store"), "lora.rank=2,3", "sample.images_per_prompt=1", "sample.class_images=2"]
    first = dbexp_command(tmp_path, "-m", "hydra.sweep.dir=first", *swept)
    assert first.status == 0, first.err
    code = f"import sys; sys.argv[1:] = {['-m', 'hydra.sweep.dir=again', *swept]!r}\n{AGAIN.format(networks=NETWORKS)}"
    source = Path(dbexp.__file__).parents[1]
    again = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(source)!r})\n{code}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == "imported"
    assert (tmp_path / "again" / "results.csv").read_bytes() == (tmp_path / "first" / "results.csv").read_bytes()
