"""kill -9 at any moment: the same command again does what is missing, and results.csv is the same, byte for byte.

A process forked from the tests' own runs the sweep and kills itself at its n-th write: everything that is kept comes to
its place by `os.replace`, so that the moments just before and after each are all there are. Which ones is random, and
the same in every run of the tests.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.sweeps import dbexp_command, fork, tiny

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only here can a process be forked")

SHORT = ["lr_schedule=polynomial", "train.steps=3,5", "train.checkpoint_every=2", "sample.images_per_prompt=1",
         "sample.class_images=2", "sample.batch_size=2"]  # fmt: skip
LONG = ["lora.rank=2,3", "train.steps=3,5", "train.grad_accum=1,2", "train.checkpoint_every=2", "prior.weight=0,1"]


def counted(folder: Path, argv: Sequence[str], kill_at: int = 0) -> int:
    """Run a command in a forked process.

    Args:
        folder: where it runs.
        argv: of the command.
        kill_at: number of the write that it does not live to see; 0: it may end.

    Returns:
        How many writes it made; -1 if it was killed.
    """
    reader, writer = os.pipe()

    def work() -> int:
        replace, calls = os.replace, 0

        def fatal(source: object, target: object) -> None:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)  # type: ignore[arg-type]  # whatever os.replace takes

        os.replace = fatal  # type: ignore[assignment]  # in this process alone
        outcome = dbexp_command(folder, *argv)
        sys.stderr.write(outcome.err if outcome.status else "")
        os.write(writer, str(calls).encode())
        return outcome.status

    child = fork(work)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        count = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return -1
    assert os.WEXITSTATUS(status) == 0
    return int(count)


def survives(folder: Path, swept: Sequence[str], kills: int, seed: int) -> None:
    """Kill a sweep again and again, let it end, and compare."""

    def command(name: str) -> list[str]:
        return ["-m", f"hydra.sweep.dir={name}", *tiny(folder / f"store-{name}"), *swept]

    writes = counted(folder, command("whole"))
    expected = (folder / "whole" / "results.csv").read_bytes()
    assert expected.count(b"finished") >= 2
    generator, remaining = random.Random(seed), writes
    for _ in range(kills):
        # every attempt has less to do than the one before, and gets some way into it
        at = generator.randint(1, max(remaining // 2, 2))
        if counted(folder, command("killed"), at) >= 0:
            break
        remaining = max(remaining - at, 4)
    counted(folder, command("killed"))
    assert (folder / "killed" / "results.csv").read_bytes() == expected
    assert not list((folder / "store-killed" / "packs").glob("*"))


def test_a_few_moments(tmp_path: Path) -> None:
    survives(tmp_path, SHORT, kills=3, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_many_moments(tmp_path: Path, seed: int) -> None:
    """Lanes of other lengths, ranks, rows and accumulation, two finish lines each, killed up to a dozen times."""
    survives(tmp_path, LONG, kills=12, seed=seed)
