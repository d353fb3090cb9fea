"""Folders of one's own, whatever the clock says, and folders that one process at a time writes to."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dbexp.core import folders
from dbexp.core.errors import ConfigError


def test_everybody_gets_another_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: folders.fresh(tmp_path / "day" / "12-00-00").name, range(24)))
    assert sorted(names) == sorted(["12-00-00", *(f"12-00-00-{number}" for number in range(2, 25))])


def test_a_folder_that_a_live_process_holds_is_refused_and_free_after_it(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from dbexp.core import folders; folders.hold(Path(sys.argv[1]), 'x')"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{code}; print('held', flush=True); sys.stdin.read()", str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.dir=.*another process that still runs writes to this folder"):
        folders.hold(tmp_path, "hydra.sweep.dir")
    holder.kill()
    holder.communicate()
    folders.hold(tmp_path, "hydra.sweep.dir")
    folders.hold(tmp_path, "hydra.sweep.dir")  # a process may hold it twice
    folders.release_all()
    assert list(tmp_path.iterdir()) == []
