"""A storm of fifty kills: SIGKILL, SIGTERM and Ctrl-C in every stage of every command, at writes and by the clock.

After each the command is repeated, or killed again on its way. In the end everything is as an uninterrupted command
leaves it, byte for byte, and nothing else is there. `pytest -m slow -s` shows which signals came where.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import dbexp.compare.command
import dbexp.compare.page.page
import dbexp.export.command
import dbexp.generate.command
import dbexp.pipeline.command
import dbexp.pipeline.halving
import dbexp.pipeline.run
import dbexp.pipeline.sweep
from tests.processes import SHORT, Command, Moment, attempt, said_well, same, sweep_of
from tests.sweeps import start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="only here can a process be forked"),
]

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ORDER = ("loading", "prior", "train", "pack state", "sample", "evaluate", "results")
"""In which a command comes to its stages: a kill late in it leaves nothing to kill earlier."""
LANES = ["lora.rank=2,3", "train.steps=3", *SHORT]
RACE = ["objective=dino", "train.lr=1e-3,1e-2", "train.steps=4", "hydra.launcher.halving.rungs=[2]", *SHORT]
STORYBOOK = [
    "train.steps=2", "lora.rank=2,3", "prior.count=2", "prior.steps=2", "sample.steps=2", "sample.resolution=32",
    'sample.prompts=["a {token} {class}"]', "tracking=disabled", *SHORT,
]  # fmt: skip
met: Counter[str] = Counter()


def storybook_sweep(folder: Path) -> Command:
    def words(name: str) -> list[str]:
        return ["-m", f"hydra.sweep.dir={name}/sweep", f"store={folder}/{name}/store", *STORYBOOK]

    return Command("dbexp", dbexp.pipeline.command.main, words)


def moments(stages: Counter[str], seconds: float, generator: random.Random) -> Iterator[Moment]:
    """Where signals come in one round: in each stage at a random write, and at random times between."""
    kinds = list(SIGNALS)
    generator.shuffle(kinds)
    for number, stage in enumerate(stage for stage in ORDER if stages[stage]):
        count = generator.randint(1, max(1, stages[stage] // 2))
        yield Moment(kinds[number % 3], stage, count, late=generator.random() < 0.5)
        if number % 2 == 0:
            yield Moment(kinds[(number + 1) % 3], seconds=generator.uniform(0.1, 0.6) * seconds)


def storm(folder: Path, command: Command, kills: int, label: str) -> None:
    """Kill a command so many times, round after round, each of which ends as an uninterrupted command does."""
    whole = attempt(folder, command.run("whole"))
    assert whole.status == 0, whole.text
    stages, generator, came, rounds = Counter(whole.writes), random.Random(label), Counter[str](), 0
    while came.total() < kills:
        rounds += 1
        assert rounds <= 3 * kills, f"signals come too late: {came}"
        name = f"killed{rounds}"
        ended = False
        for moment in moments(stages, whole.seconds, generator):
            end = attempt(folder, command.run(name), moment)
            said_well(end, moment, command.program)
            ended = end.status == 0
            if ended or came.total() >= kills:
                break
            how = "clock" if moment.stage is None else "write"
            came[f"{moment.signum.name} {end.met} ({how})"] += 1
        if not ended:
            end = attempt(folder, command.run(name))
            assert end.status == 0, end.text
        same(folder / "whole", folder / name)
    met.update(came)
    print(f"\n{label}: {came.total()} kills in {rounds} rounds; {met.total()} so far")
    print("\n".join(f"  {count:3d} {where}" for where, count in sorted(came.items())))


@pytest.mark.parametrize(
    ("label", "swept", "kills"),
    [
        ("pack launcher", LANES, 14),
        ("basic launcher", ["hydra/launcher=basic", *LANES], 9),
        ("halving", RACE, 9),
    ],
)
def test_sweeps(tmp_path: Path, label: str, swept: list[str], kills: int) -> None:
    if swept is RACE:
        pytest.importorskip("optuna")
    storm(tmp_path, sweep_of(tmp_path, *swept), kills, label)


def test_the_built_in_model(tmp_path: Path) -> None:
    storm(tmp_path, storybook_sweep(tmp_path), 6, "built-in model")


def test_the_commands_beside_it(tmp_path: Path) -> None:
    run = attempt(tmp_path, sweep_of(tmp_path, "lora.rank=2", "train.steps=3", *SHORT).run("made"))
    assert run.status == 0, run.text
    sweep = tmp_path / "made" / "sweep"

    def generate(name: str) -> list[str]:
        drawn = ["prompts=auto", "steps=2", "batch_size=2"]
        return [f"run={sweep}/0", *drawn, f"store={name}/store", f"folder={name}/pictures"]

    def export(name: str) -> list[str]:
        return [f"run={sweep}/0", "check_steps=2", f"store={name}/store", f"folder={name}/exported"]

    def compare(name: str) -> list[str]:
        return [str(sweep), f"output={name}/compared"]

    for program, main, words in (
        ("dbexp-generate", dbexp.generate.command.main, generate),
        ("dbexp-export", dbexp.export.command.main, export),
        ("dbexp-compare", dbexp.compare.command.main, compare),
    ):
        (tmp_path / program).mkdir()
        storm(tmp_path / program, Command(program, main, words), 4, program)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_process_of_its_own_while_it_loads(tmp_path: Path, signum: signal.Signals) -> None:
    """Where the modules of libraries are being imported, which the forked processes above have already."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored
    try:
        process = start(tmp_path, *sweep_of(tmp_path, *LANES).words("killed"))
    finally:
        signal.signal(signal.SIGINT, before)
    while not handles_sigterm(process.pid):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(random.Random(signum).uniform(0.2, 3))
    process.send_signal(signum)
    status, text = process.wait(240), (tmp_path / "said.log").read_text()
    assert status == (-signum if signum == signal.SIGKILL else 128 + signum), text
    assert "Traceback" not in text and "Exception ignored" not in text
    assert signum == signal.SIGKILL or text.count("dbexp: stopped; ") == 1
    met[f"{signum.name} loading (process)"] += 1
    print(f"\n{signum.name} while it loads; {met.total()} so far")


def handles_sigterm(pid: int) -> bool:
    """Whether a process has a handler for SIGTERM: its command has begun."""
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)
