"""A sweep for which memory does not suffice: packs and batches halve, and every job passes with the same results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

import dbexp
from dbexp.pipeline import sweep
from tests import builders
from tests.sweeps import dbexp_command, results, tiny

SWEPT = ["lora.rank=2,3", "sample.images_per_prompt=1", "sample.class_images=2", "hydra.launcher.size=2"]
ROWS = 2
"""A lane has two (subject and class), and so has an image (with prompt and without)."""


@contextmanager
def memory_for(rows: int) -> Iterator[list[int]]:
    """Convolutions of more rows fail as oneDNN does; in the block, the rows of those that failed."""
    refused: list[int] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, nn.Conv2d) and len(inputs[0]) > rows:
            refused.append(len(inputs[0]))
            raise RuntimeError("could not create a primitive")

    hook = register_module_forward_pre_hook(look)
    try:
        yield refused
    finally:
        hook.remove()


def test_a_sweep_halves_until_every_job_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_most_lanes", {})

    def command(name: str) -> list[str]:
        return ["-m", f"hydra.sweep.dir={name}", *tiny(tmp_path / f"store-{name}"), *SWEPT]

    assert dbexp_command(tmp_path, *command("ample")).status == 0
    with memory_for(ROWS) as refused:
        outcome = dbexp_command(tmp_path, *command("scarce"))
    assert outcome.status == 0 and "Traceback" not in outcome.err, outcome.err
    assert 4 in refused, "both lanes were tried together"
    assert "2 lanes do not fit in memory together; from now on at most 1 at a time" in outcome.err
    for setting in ("prior.batch_size", "sample.batch_size", "evaluate.batch_size"):
        assert re.search(
            rf"memory did not suffice for \d+ pictures at once: going on with \d \({setting}\)", outcome.err
        )
    for full, short in zip(results(tmp_path / "ample"), results(tmp_path / "scarce"), strict=True):
        assert short["status"] == "finished"
        for name, value in full.items():
            # metrics round differently with the size of a batch
            is_number = re.fullmatch(r"-?\d+\.\d+", value)
            assert float(short[name]) == pytest.approx(float(value), abs=1e-4) if is_number else short[name] == value
    for number in range(2):
        lora = Path(str(number), "train", "lora.safetensors")
        ample, scarce = (builders.tensors(tmp_path / name / lora) for name in ("ample", "scarce"))
        torch.testing.assert_close(scarce, ample, rtol=1e-4, atol=1e-5)  # a step is 1e-3


LIMITS = [("v", megabytes) for megabytes in (300, 2500, 3000, 3300, 3700, 4500)]
LIMITS += [("d", megabytes) for megabytes in (50, 200, 400, 600, 800, 1000, 1600)]


FEW_LIMITS = [("v", megabytes) for megabytes in (300, 2500, 3000, 3300, 3640, 3680, 6000)]
FEW_LIMITS += [("d", megabytes) for megabytes in (50, 200, 1600)]

of_linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")


def under_limits(program: str, words: Sequence[str], limits: Sequence[tuple[str, int]], folder: Path) -> None:
    """Run a command under each limit: it ends well, or with one message.

    Args:
        program: its name.
        words: behind it.
        limits: switch of ulimit, MB.
        folder: that it works in.
    """
    counts = {"ran": 0, "refused in one message": 0}
    variables = os.environ | {"PYTHONPATH": str(Path(dbexp.__file__).parents[1])}
    module = "dbexp" if program == "dbexp" else f"dbexp.{program.removeprefix('dbexp-')}.command"
    for switch, megabytes in limits:
        command = ["bash", "-c", f'ulimit -{switch} {megabytes << 10}; exec "$@"', "_", sys.executable, "-m", module]
        done = subprocess.run([*command, *words], cwd=folder, env=variables, capture_output=True, text=True)
        case = f"{program}, ulimit -{switch} {megabytes} MB: status {done.returncode}: {done.stderr[-1500:]}"
        messages = [line for line in done.stderr.splitlines() if line.startswith(f"{program}: ")]
        assert "Traceback" not in done.stderr, case
        assert done.returncode == 0 or (done.returncode == 1 and len(messages) == 1 and "memory" in messages[0]), case
        counts["refused in one message" if done.returncode else "ran"] += 1
    print(f"\n{program}, limits of the shell: {counts}")
    assert min(counts.values()) > 0


@pytest.mark.slow
@of_linux
def test_limits_of_the_shell_end_in_one_message(tmp_path: Path) -> None:
    """From far too little for torch to just enough for everything: loading says so, or the run is as good as any."""
    under_limits("dbexp", [*tiny(tmp_path / "store"), "hydra.run.dir=run"], LIMITS, tmp_path)


@pytest.mark.slow
@of_linux
@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("dbexp", ["-m", "hydra/launcher=basic", "hydra.sweep.dir=sweep", "lora.rank=2,3"]),
        ("dbexp-generate", ["run=run", "prompt=a {token}", "images=1", "steps=2", "folder=drawn"]),
        ("dbexp-export", ["run=run", "folder=exported", "check_steps=2"]),
        ("dbexp-compare", ["run", "output=compared"]),
        ("dbexp-estimate", ["model=random", "card=t4"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_limits_of_the_shell_and_other_commands(program: str, words: list[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    if program == "dbexp":
        words = [*words, *tiny(store)]
    elif program == "dbexp-estimate":
        words = [*words, f"store={store}"]
    else:
        assert dbexp_command(tmp_path, *tiny(store), "hydra.run.dir=run").status == 0
    if program in ("dbexp-generate", "dbexp-export"):
        words = [*words, f"store={store}"]
    under_limits(program, words, FEW_LIMITS, tmp_path)
