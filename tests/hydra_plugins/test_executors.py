"""Packs on real executors, each sweep in a process of its own: Slurm, processes through submitit, Ray, local devices.

They need the extras (slurm, ray, joblib), and Slurm needs Debian and root; what is lacking is skipped with the reason.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hydra_plugins import slurm
from tests.sweeps import results, start, tiny, until

pytestmark = pytest.mark.slow

SWEPT = ["hydra.sweep.dir=sweep", "lora.rank=2,4"]
PACKS_OF_ONE = "hydra.launcher.size=1"
SMALL_RAY = ["+hydra.launcher.ray.init.include_dashboard=false", "+hydra.launcher.ray.init.num_cpus=1"]


def needs(library: str) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def log(folder: Path) -> str:
    return (folder / "said.log").read_text()


def finish(process: subprocess.Popen[str], folder: Path) -> str:
    """What a sweep of two jobs said, once it has done both."""
    assert process.wait(900) == 0, log(folder)
    assert [row["status"] for row in results(folder / "sweep")] == ["finished", "finished"]
    return log(folder)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    needs("submitit")
    try:
        slurm.install()
        with slurm.cluster(tmp_path_factory.mktemp("slurm")) as variables:
            yield variables
    except slurm.NoSlurm as reason:
        pytest.skip(str(reason))


SLURM = ["hydra/launcher=pack_slurm", "hydra.launcher.submitit.gpus_per_node=null"]


class TestSlurm:
    def test_a_job_per_pack(self, cluster: dict[str, str], tmp_path: Path) -> None:
        one_core = "hydra.launcher.submitit.cpus_per_task=1"
        argv = [*SLURM, one_core, *SWEPT, PACKS_OF_ONE, *tiny(tmp_path / "store")]
        text = finish(start(tmp_path, "-m", *argv, variables=cluster), tmp_path)
        assert "pack 1: job 1_0" in text and "pack 2: job 1_1" in text
        assert len(list((tmp_path / "sweep" / ".submitit").glob("*/*_result.pkl"))) == 2

    def test_a_job_that_is_killed_is_tried_once_more(self, cluster: dict[str, str], tmp_path: Path) -> None:
        """Nobody but the queue knows that it is gone: there is no accounting."""
        argv = [*SLURM, *SWEPT, *tiny(tmp_path / "store"), "train.steps=400", "train.checkpoint_every=5"]
        process = start(tmp_path, "-m", *argv, "hydra.launcher.submitit.cpus_per_task=2", variables=cluster)
        until(lambda: list((tmp_path / "store").glob("packs/*.pt")), process, tmp_path)
        listed = subprocess.run(["pgrep", "--full", "submitit.core._submit"], capture_output=True, text=True)
        workers = [int(pid) for pid in listed.stdout.split() if str(tmp_path) in _command(int(pid))]
        assert workers
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        text = finish(process, tmp_path)
        assert "ended without a result" in text and "it is tried once more" in text
        logs = "".join(path.read_text() for path in (tmp_path / "sweep" / ".submitit").glob("*/*.err"))
        assert "going on from step" in logs


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("library", "argv"),
    [
        ("submitit", ["hydra/launcher=pack_submitit_local", PACKS_OF_ONE]),
        ("submitit", ["hydra/launcher=pack_submitit_local", "hydra.launcher.submitit.cluster=debug"]),
        ("ray", ["hydra/launcher=pack_ray", *SMALL_RAY, PACKS_OF_ONE]),
        ("hydra_plugins.hydra_ray_launcher", ["hydra/launcher=ray"]),
        ("hydra_plugins.hydra_joblib_launcher", ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]),
        ("hydra_plugins.hydra_submitit_launcher", ["hydra/launcher=submitit_local"]),
    ],
    ids=["pack-submitit-local", "pack-submitit-debug", "pack-ray", "ray", "joblib", "submitit-local"],
)
def test_a_sweep(library: str, argv: list[str], tmp_path: Path) -> None:
    needs(library)
    text = finish(start(tmp_path, "-m", *argv, *SWEPT, *tiny(tmp_path / "store")), tmp_path)
    assert "2 runs" in text and "results        sweep/results.csv" in text


class TestDevices:
    ARGV = ("hydra/launcher=pack_gpus", "hydra.launcher.devices=[cpu,cpu]")

    def test_a_process_killed_while_it_trains(self, tmp_path: Path) -> None:
        steps = ["train.steps=400", "train.checkpoint_every=5"]
        process = start(tmp_path, "-m", *self.ARGV, *SWEPT, *tiny(tmp_path / "store"), *steps)
        until(lambda: list((tmp_path / "store").glob("packs/*.pt")), process, tmp_path)
        worker = int(log(tmp_path).partition("pack 1: on device cpu, process ")[2].split()[0])
        os.kill(worker, signal.SIGKILL)
        text = finish(process, tmp_path)
        assert "was killed by SIGKILL" in text and "tried once more" in text

    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
    def test_when_the_sweep_is_stopped_no_process_stays(self, tmp_path: Path, signum: signal.Signals) -> None:
        steps = ["train.steps=4000", "train.checkpoint_every=5"]
        process = start(tmp_path, "-m", *self.ARGV, *SWEPT, *tiny(tmp_path / "store"), *steps)
        until(lambda: list((tmp_path / "store").glob("packs/*.pt")), process, tmp_path)
        pids = [int(part.split()[0]) for part in log(tmp_path).split(", process ")[1:]]
        assert len(pids) == 2
        process.send_signal(signum)
        assert process.wait(300) == (143 if signum == signal.SIGTERM else -signal.SIGKILL)
        deadline = time.monotonic() + 120
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        if signum == signal.SIGTERM:
            assert "the same command goes on from there" in log(tmp_path)
