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


def test_folders_in_which_nothing_came_to_be_are_taken_back(tmp_path: Path) -> None:
    used, unused = folders.fresh(tmp_path / "2026" / "used"), folders.fresh(tmp_path / "2025" / "unused")
    folders.hold(tmp_path / "named", "x")
    (tmp_path / "there").mkdir()
    folders.hold(tmp_path / "there", "x")
    for folder in (used, unused):
        (folder / "log").touch()
    (used / "result").touch()
    folders.take_back(["log"])
    folders.release_all()
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "2026",
        "2026/used",
        "2026/used/log",
        "2026/used/result",
        "there",
    ]


def test_a_command_is_repeated_in_a_folder_whose_name_nobody_typed(tmp_path: Path) -> None:
    path = folders.fresh(tmp_path / "12-00-00", "hydra.sweep.dir")
    folders.hold(path, "hydra.sweep.dir")
    assert folders.again("hydra.sweep.dir") == f", in the same folder with hydra.sweep.dir={path}"
    assert folders.again("hydra.run.dir") == ""
    folders.take_back([])
    assert folders.again("hydra.sweep.dir") == "", "nothing came to be in it"
    folders.fresh(path, "hydra.sweep.dir")
    folders.hold(tmp_path / "typed", "hydra.sweep.dir")
    assert folders.again("hydra.sweep.dir") == ""
    folders.release_all()


def test_a_folder_is_made_beside_its_place_by_one_process_at_a_time(tmp_path: Path) -> None:
    partial = tmp_path / "above" / ".out.partial"
    (partial / "below").mkdir(parents=True)
    (partial / "below" / "half").touch()
    (partial / "link").symlink_to(tmp_path)
    with folders.unfinished(tmp_path / "above" / "out", "folder") as folder:
        assert folder == partial and list(folder.iterdir()) == []
        (folder / "file").touch()
        code = "import sys; from pathlib import Path; from dbexp.core.folders import unfinished\n"
        code += "with unfinished(Path(sys.argv[1]), 'folder'): pass"
        argv = [sys.executable, "-c", code, str(tmp_path / "above" / "out")]
        refused = subprocess.run(argv, capture_output=True, text=True)
        assert "another process that still runs writes to this folder" in refused.stderr and (folder / "file").exists()
    assert not partial.exists() and list(partial.parent.iterdir()) == []
    assert subprocess.run(argv).returncode == 0 and list(partial.parent.iterdir()) == []


def test_what_stands_in_the_way_of_a_folder_is_known_before_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert folders.obstacle(tmp_path / "a" / "b") is None
    assert folders.obstacle(tmp_path / "file") == "is a file"
    assert folders.obstacle(tmp_path / "file" / "a" / "b") == f"{tmp_path / 'file'} is a file"
    assert folders.obstacle(tmp_path / ("x" * 300) / "a") == "File name too long"
    assert folders.obstacle(tmp_path / "a\0b") == "embedded null byte"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
