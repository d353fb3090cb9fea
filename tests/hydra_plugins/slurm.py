"""A real Slurm of one node, from Debian's packages, for as long as a `with` block lasts.

It has its own folder, ports and key, touches nothing of a Slurm that may run on the machine, and has no accounting
database, like many small clusters: there nobody but the queue says that a job was killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel")
_CONF = """\
ClusterName=dbexp
SlurmctldHost={host}
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
SchedulerParameters=sched_interval=2
NodeName={host} CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class NoSlurm(Exception):
    """It cannot be had here; the message says why."""


def install() -> None:
    """Install Debian's packages unless they are there.

    Raises:
        NoSlurm: this machine or this user cannot.
    """
    if all(_find(program) for program in _PROGRAMS):
        return
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise NoSlurm("no Slurm here, and only root on Debian can install slurm-wlm and munge")
    command = ["apt-get", "install", "--yes", "--no-install-recommends", "slurm-wlm", "munge"]
    result = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    )
    if result.returncode:
        raise NoSlurm(f"slurm-wlm and munge could not be installed: {result.stderr.strip().splitlines()[-1:]}")


@contextlib.contextmanager
def cluster(folder: Path, cpus: int = 2) -> Iterator[dict[str, str]]:
    """Run a cluster.

    Args:
        folder: an empty one, for its state and logs.
        cpus: that it believes to have.

    Yields:
        Variables that its commands need in their environment.

    Raises:
        NoSlurm: it did not come up.
    """
    if os.geteuid() != 0:
        raise NoSlurm("only root can start Slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    munge = folder / "munge.socket"
    text = _CONF.format(
        host=socket.gethostname(), controller=_port(), daemon=_port(), munge=munge, folder=folder, cpus=cpus
    )
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    variables = {"SLURM_CONF": str(folder / "slurm.conf")}
    files = [
        f"--{name}-file={folder}/munge.{ending}" for name, ending in (("log", "log"), ("pid", "pid"), ("seed", "seed"))
    ]
    with contextlib.ExitStack() as running:
        options = ["--foreground", "--force", f"--socket={munge}", f"--key-file={key}", *files]
        running.enter_context(_process("munged", *options, variables=variables, folder=folder))
        _until(munge.exists, "munged", folder)
        for program in ("slurmctld", "slurmd"):
            running.enter_context(_process(program, "-D", variables=variables, folder=folder))
        _until(lambda: "idle" in _output(["sinfo", "--noheader", "--format=%t"], variables), "slurmd", folder)
        yield variables


def _find(program: str) -> str | None:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _process(program: str, *options: str, variables: dict[str, str], folder: Path) -> Iterator[None]:
    path = _find(program)
    if path is None:
        raise NoSlurm(f"there is no {program}")
    with (folder / f"{program}.out").open("w") as output:
        process = subprocess.Popen([path, *options], stdout=output, stderr=output, env=os.environ | variables)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _output(command: Sequence[str], variables: dict[str, str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | variables).stdout


def _until(ready: Callable[[], object], what: str, folder: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "".join(path.read_text()[-500:] for path in folder.glob("*.out"))
            raise NoSlurm(f"{what} did not come up in {seconds:g} s: {logs}")
        time.sleep(0.2)
