"""What limits of the shell and of control groups leave, and what is tried in another process first."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dbexp.core import limits


def cgroup(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name.replace("_dot_", ".")).write_text(f"{value}\n")


def test_control_groups_of_version_two(tmp_path: Path) -> None:
    root, listing = tmp_path / "fs", tmp_path / "listing"
    listing.write_text("0::/slurm/job_7\n")
    cgroup(root, cgroup_dot_procs="")
    stat = "anon 900\ninactive_file 50"
    cgroup(root / "slurm", memory_dot_max=1000, memory_dot_current=950, memory_dot_stat=stat)
    cgroup(root / "slurm" / "job_7", memory_dot_max="max", memory_dot_current=700, memory_dot_stat=stat)
    assert list(limits.left_of_cgroups(listing, root)) == [100]


def test_control_groups_of_version_one(tmp_path: Path) -> None:
    root, listing = tmp_path / "fs", tmp_path / "listing"
    listing.write_text("5:cpu,cpuacct:/x\n4:memory:/docker/ab\n0::/\n")
    group = {"memory_dot_usage_in_bytes": 400, "memory_dot_stat": "total_inactive_file 100"}
    cgroup(root / "memory", memory_dot_limit_in_bytes=9223372036854771712, **group)
    cgroup(root / "memory" / "docker" / "ab", memory_dot_limit_in_bytes=1000, **group)
    assert list(limits.left_of_cgroups(listing, root)) == [700]


def test_no_control_groups(tmp_path: Path) -> None:
    assert list(limits.left_of_cgroups(tmp_path / "nothing", tmp_path)) == []


def test_without_a_limit_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert limits.left_of_limits() == {}


REHEARSAL = """
import ctypes, os, resource, sys
from dbexp.core import limits
from dbexp.core.errors import ConfigError
def work():
    print("said")
    {work}
if {limited}:
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, resource.getrlimit(resource.RLIMIT_DATA)[1]))
try:
    limits.rehearse(work)
    print("lives")
except ConfigError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only here can a process be forked")
@pytest.mark.parametrize(
    ("work", "limited", "said"),
    [
        ("os.abort()", True, "memory did not suffice for the libraries and networks: ulimit -d leaves "),
        ("ctypes.string_at(0)", True, "memory did not suffice for the libraries and networks: ulimit -d leaves "),
        ("os._exit(1)", True, "memory did not suffice for the libraries and networks: ulimit -d leaves "),
        ("raise ValueError('met again')", True, "lives"),
        ("sys.exit('met again')", True, "lives"),
        ("pass", True, "lives"),
        ("os.abort()", False, "lives"),  # without a limit nothing is tried
    ],
)
def test_what_would_end_the_process_is_tried_in_another(work: str, limited: bool, said: str) -> None:
    code = REHEARSAL.format(work=work, limited=limited)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith(said) and done.stdout.count("\n") == 1
