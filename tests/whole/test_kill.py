"""kill -9 at any moment: the same command again does what is missing, and results.csv is the same, byte for byte.

A process forked from the tests' own runs the sweep and kills itself at its n-th write: everything that is kept comes to
its place by `os.replace`, so that the moments just before and after each are all there are. Which ones is random, and
the same in every run of the tests.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

import dbexp.compare.page.page
import dbexp.pipeline.run
import dbexp.pipeline.sweep  # noqa: F401  # before the processes are forked, which need not load it each
from tests.processes import ANY, Moment, attempt, sweep_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only here can a process be forked")

SHORT = ["lr_schedule=polynomial", "train.steps=3,5", "train.checkpoint_every=2", "sample.images_per_prompt=1",
         "sample.class_images=2", "sample.batch_size=2"]  # fmt: skip
LONG = ["lora.rank=2,3", "train.steps=3,5", "train.grad_accum=1,2", "train.checkpoint_every=2", "prior.weight=0,1"]


def survives(folder: Path, swept: Sequence[str], kills: int, seed: int) -> None:
    """Kill a sweep again and again, let it end, and compare."""
    command = sweep_of(folder, *swept)
    whole = attempt(folder, command.run("whole"))
    assert whole.status == 0, whole.text
    expected = (folder / "whole" / "sweep" / "results.csv").read_bytes()
    assert expected.count(b"finished") >= 2
    generator, remaining = random.Random(seed), len(whole.writes)
    for _ in range(kills):
        # every attempt has less to do than the one before, and gets some way into it
        at = generator.randint(1, max(remaining // 2, 2))
        end = attempt(folder, command.run("killed"), Moment(signal.SIGKILL, ANY, at))
        assert end.status in (0, -signal.SIGKILL), end.text
        if end.status == 0:
            break
        remaining = max(remaining - at, 4)
    end = attempt(folder, command.run("killed"))
    assert end.status == 0, end.text
    assert (folder / "killed" / "sweep" / "results.csv").read_bytes() == expected
    assert not list((folder / "killed" / "store" / "packs").glob("*"))


def test_a_few_moments(tmp_path: Path) -> None:
    survives(tmp_path, SHORT, kills=3, seed=11)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_many_moments(tmp_path: Path, seed: int) -> None:
    """Lanes of other lengths, ranks, rows and accumulation, two finish lines each, killed up to a dozen times."""
    survives(tmp_path, LONG, kills=12, seed=seed)
