"""Full and read-only disks: one message that names the file and the setting, and when there is room the same command
goes on to the same bytes. `pytest -m slow -s` shows how many of which.

The disks are small file systems in memory, mounted where a command writes to.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dbexp.compare.command
import dbexp.compare.page.page
import dbexp.export.command
import dbexp.generate.command
import dbexp.pipeline.run
from dbexp.runs.folder import RunFolder
from tests.processes import SHORT, Command, End, attempt, run_of, same, sweep_of
from tests.sweeps import start

ROOMY = "size=200m"
RUN = ["train.steps=3", "lora.rank=2", *SHORT]
FULL = "No space left on device"
seen: Counter[str] = Counter()


def mountable() -> bool:
    """Whether this user may mount file systems here."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
    return True


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="only here can a process be forked"),
    pytest.mark.skipif(not mountable(), reason="nothing can be mounted here"),
]

Disk = Callable[..., None]


@pytest.fixture
def disk() -> Iterator[Disk]:
    """`disk(folder, "size=100k")` makes a folder a disk of its own, or changes the one that it is."""
    mounted: list[Path] = []

    def mount(folder: Path, options: str) -> None:
        again = "remount," if folder in mounted else ""
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"{again}{options}", "none", folder], check=True)
        if not again:
            mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", folder], check=True)


def need(folder: Path) -> dict[str, int]:
    """What is used of a disk, as options of mount have it."""
    state = os.statvfs(folder)
    return {"size": (state.f_blocks - state.f_bfree) * state.f_frsize, "nr_inodes": state.f_files - state.f_ffree}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, dict[str, int]]]]:
    """What a run leaves that has room, on disks of its own, and how much that is."""
    folder = tmp_path_factory.mktemp("whole")
    disks = [folder / "whole" / name for name in ("store", "run")]
    for path in disks:
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", ROOMY, "none", path], check=True)
    try:
        end = attempt(folder, run_of(folder, *RUN).run("whole"))
        assert end.status == 0, end.text
        yield folder / "whole", {path.name: need(path) for path in disks}
    finally:
        for path in disks:
            subprocess.run(["umount", "-l", path], check=True)


def refused(end: End, program: str, place: Path, *says: str) -> None:
    """One message with the file and the setting, and nothing else went wrong."""
    assert end.status == 1, end.text
    lines = [line for line in end.text.splitlines() if line.startswith(f"{program}: ")]
    assert len(lines) == 1, end.text
    for word in ("/".join(place.parts[-2:]), *says):
        assert word in lines[0], end.text
    assert "Traceback" not in end.text and "Logging error" not in end.text, end.text


def count(what: str) -> None:
    seen[what] += 1
    print(f"\n{what} ({seen[what]}); {seen.total()} full or read-only disks so far")


@pytest.mark.parametrize(
    ("where", "what", "share"),
    [
        ("store", "size", 0.02),
        ("store", "size", 0.2),
        ("store", "size", 0.5),
        ("store", "size", 0.7),
        ("store", "size", 0.9),
        ("store", "nr_inodes", 0.02),
        ("store", "nr_inodes", 0.3),
        ("store", "nr_inodes", 0.6),
        ("store", "nr_inodes", 0.95),
        ("run", "size", 0.02),
        ("run", "size", 0.5),
        ("run", "size", 0.95),
        ("run", "nr_inodes", 0.05),
        ("run", "nr_inodes", 0.5),
        ("run", "nr_inodes", 0.95),
    ],
)
def test_a_run(
    whole: tuple[Path, dict[str, dict[str, int]]], disk: Disk, tmp_path: Path, where: str, what: str, share: float
) -> None:
    expected, needed = whole
    command, place = run_of(tmp_path, *RUN), tmp_path / "cut" / where
    full = int(needed[where][what] * share) if what == "size" else max(2, int(needed[where][what] * share))
    disk(place, f"{what}={full}")
    end = attempt(tmp_path, command.run("cut"))
    setting = "store=FOLDER" if where == "store" else "hydra.run.dir=FOLDER"
    refused(end, "dbexp", place, FULL, f"choose another place with {setting}")
    disk(place, f"{ROOMY},nr_inodes=100000")
    end = attempt(tmp_path, command.run("cut"))
    assert end.status == 0, end.text
    same(expected, tmp_path / "cut")
    count(f"{where}, {what}")


def test_a_disk_whose_room_goes_while_a_model_is_made(disk: Disk, tmp_path: Path) -> None:
    """And a sweep that meets it while it plans, before there is any job."""
    command = sweep_of(tmp_path, "model=random", "model.path=random", "model.resolution=32", "evaluate=random", *RUN)
    disk(tmp_path / "cut" / "store", "size=3m")
    refused(attempt(tmp_path, command.run("cut")), "dbexp", tmp_path / "cut" / "store", FULL, "store=FOLDER")
    assert not (tmp_path / "cut" / "sweep").exists(), "no folder without anything in it"
    count("store while a model is made")


@pytest.mark.parametrize("where", ["store", "sweep"])
def test_a_sweep(disk: Disk, tmp_path: Path, where: str) -> None:
    swept = ["train.steps=3", "lora.rank=2,3", *SHORT]
    whole = attempt(tmp_path, sweep_of(tmp_path, *swept).run("whole"))
    assert whole.status == 0, whole.text
    paths = [path for path in (tmp_path / "whole" / where).rglob("*") if path.is_file() and path.suffix != ".html"]
    disk(tmp_path / "cut" / where, f"size={sum(path.stat().st_size for path in paths) // 2}")
    end = attempt(tmp_path, sweep_of(tmp_path, *swept).run("cut"))
    assert end.status == 1 and "Traceback" not in end.text and "Logging error" not in end.text, end.text
    setting = {"store": "store=FOLDER", "sweep": "hydra.sweep.dir=FOLDER"}[where]
    assert str(tmp_path / "cut" / where) in end.text and FULL in end.text and setting in end.text, end.text
    disk(tmp_path / "cut" / where, ROOMY)
    end = attempt(tmp_path, sweep_of(tmp_path, *swept).run("cut"))
    assert end.status == 0, end.text
    same(tmp_path / "whole", tmp_path / "cut")
    count(f"{where} of a sweep")


def test_the_commands_beside_it(whole: tuple[Path, dict[str, dict[str, int]]], disk: Disk, tmp_path: Path) -> None:
    run, store = whole[0] / "run", f"store={tmp_path}/store"

    def generate(name: str) -> list[str]:
        return [f"run={run}", "prompts=auto", "steps=2", "batch_size=2", store, f"folder={name}/disk"]

    def export(name: str) -> list[str]:
        return [f"run={run}", "check_steps=2", store, f"folder={name}/disk/exported"]

    def compare(name: str) -> list[str]:
        return [str(run), f"output={name}/disk"]

    for program, main, words, size, setting in (
        ("dbexp-generate", dbexp.generate.command.main, generate, "60k", "folder=FOLDER"),
        ("dbexp-export", dbexp.export.command.main, export, "40k", "folder=FOLDER"),
        ("dbexp-compare", dbexp.compare.command.main, compare, "20k", "output=FOLDER"),
    ):
        command = Command(program, main, words)
        end = attempt(tmp_path, command.run(f"{program}-whole"))
        assert end.status == 0, end.text
        name = f"{program}-cut"
        disk(tmp_path / name / "disk", f"size={size}")
        end = attempt(tmp_path, command.run(name))
        refused(end, program, tmp_path / name / "disk", FULL, setting)
        disk(tmp_path / name / "disk", ROOMY)
        end = attempt(tmp_path, command.run(name))
        assert end.status == 0, end.text
        same(tmp_path / f"{program}-whole", tmp_path / name)
        count(f"folder of {program}")


def test_what_may_only_be_read(whole: tuple[Path, dict[str, dict[str, int]]], disk: Disk, tmp_path: Path) -> None:
    command = run_of(tmp_path, *RUN)
    store, run = tmp_path / "read" / "store", tmp_path / "read" / "run"
    disk(store, ROOMY)
    disk(run, ROOMY)
    end = attempt(tmp_path, command.run("read"))
    assert end.status == 0, end.text
    disk(store, "ro")
    end = attempt(tmp_path, command.run("read"))
    assert end.status == 0 and "Error" not in end.text, end.text
    disk(store, "rw")
    same(whole[0], tmp_path / "read")
    disk(store, "ro")
    count("a complete store that may only be read")
    end = attempt(tmp_path, run_of(tmp_path, *RUN, "lora.rank=3").run("read"))
    refused(end, "dbexp", store, "Read-only file system", "store=FOLDER")
    count("an incomplete store that may only be read")
    disk(store, "rw")
    disk(run, "ro")
    end = attempt(tmp_path, command.run("read"))
    refused(end, "dbexp", run, "Read-only file system", "hydra.run.dir=FOLDER")
    count("the folder of a run that may only be read")


def test_the_folder_of_the_dashboard(whole: tuple[Path, dict[str, dict[str, int]]], disk: Disk, tmp_path: Path) -> None:
    """It costs the dashboard, not the run."""
    words = [word for word in run_of(tmp_path, *RUN).words("cut") if not word.startswith("tracking")]
    tracking = RunFolder(tmp_path / "cut" / "run").tracking
    disk(tracking, "size=12k")
    process = start(tmp_path, *words, "tracking=offline")
    status, text = process.wait(240), (tmp_path / "said.log").read_text()
    assert "Traceback" not in text and str(tracking) in text and FULL in text, text
    assert status == 0 and "dashboard      lacks" in text, text
    disk(tracking, ROOMY)
    assert start(tmp_path, *words, "tracking=offline").wait(240) == 0, (tmp_path / "said.log").read_text()
    expected, there = RunFolder(whole[0] / "run"), RunFolder(tmp_path / "cut" / "run")
    assert there.history.read_bytes() == expected.history.read_bytes()
    results = [json.loads(folder.result.read_text())["metrics"] for folder in (expected, there)]
    assert results[0] == results[1]
    count("the folder of the dashboard")


def test_passing_files_and_the_cache_of_the_hub(
    whole: tuple[Path, dict[str, dict[str, int]]], disk: Disk, tmp_path: Path
) -> None:
    """Nothing that a run needs is written there, so it may be full."""
    full = tmp_path / "full"
    disk(full, "size=4k")
    (full / "file").write_bytes(bytes(4096))
    variables = {name: str(full) for name in ("TMPDIR", "HF_HOME")}
    process = start(tmp_path, *run_of(tmp_path, *RUN).words("cut"), variables=variables)
    assert process.wait(240) == 0, (tmp_path / "said.log").read_text()
    same(whole[0], tmp_path / "cut")
    count("TMPDIR and HF_HOME")
