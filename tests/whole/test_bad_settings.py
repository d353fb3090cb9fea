"""The commands with bad values in every field: one message, status 1, no traceback, no hang, nothing changed.

Each case is the whole command in a process of its own, forked from one that has imported what it needs, in a folder
with nothing but what an earlier sweep has left, which most of them name. How many were tried is printed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dbexp.compare import command as compare
from dbexp.compare.settings import CompareConfig
from dbexp.config.schema import Config
from dbexp.estimate import command as estimate
from dbexp.estimate.settings import EstimateConfig
from dbexp.export import command as export
from dbexp.export.settings import ExportConfig
from dbexp.generate import command as generate
from dbexp.generate.settings import GenerateConfig
from dbexp.pipeline import command as runs
from dbexp.pipeline import run as _stages  # noqa: F401  # imported once, before processes are forked
from tests import run_folders
from tests.config.cases import Case, of_fields
from tests.config.test_generated import can_be_typed, typed_words
from tests.sweeps import earlier_sweep, everything, exit_status

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

PATIENCE = 120.0  # seconds
SEED = 14
EARLIER = "earlier"
"""A folder with what a sweep has left."""


def outcome(main: Callable[[], object], program: str, words: Sequence[str], folder: Path) -> str | None:
    """What is wrong with how a command refuses its words; None: nothing.

    Args:
        main: of the command.
        program: its name, which begins its message.
        words: behind the name.
        folder: it works there, and changes nothing.
    """
    before = everything(folder)
    said = folder.with_name(f"{folder.name}.said")
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os._exit(_child(main, program, words, folder, said))
        os._exit(70)
    status: int | None = None
    deadline = time.monotonic() + PATIENCE
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if done else None
        time.sleep(0.01)
    if status is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "hangs"
    text = said.read_text(errors="surrogateescape")
    messages = [line for line in text.splitlines() if line.startswith(f"{program}: ")]
    after = everything(folder)
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if status != 1 or len(messages) != 1 or "Traceback" in text or changed:
        return f"status {status}, changed {changed}, said {text[-600:]}"
    return None


def _child(main: Callable[[], object], program: str, words: Sequence[str], folder: Path, said: Path) -> int:
    os.chdir(folder)
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    sys.argv = [program, *words]
    try:
        return exit_status(main)
    except BaseException:
        traceback.print_exc()
        return 71
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def storm(
    main: Callable[[], object], program: str, commands: Iterable[Sequence[str]], tmp_path: Path
) -> tuple[int, list[str]]:
    """Run commands that must all be refused: how many there were, and what was wrong with which."""
    wrong, count = [], 0
    for count, words in enumerate(commands, start=1):
        folder = tmp_path / str(count)
        earlier_sweep(folder / EARLIER)
        if (fault := outcome(main, program, words, folder)) is not None:
            wrong.append(f"{' '.join(words)!a:.200}: {fault}")
    return count, wrong


def some(cls: type, number: int, typed: bool = False) -> list[Case]:
    """Cases that must be refused, drawn without repetition, the same ones each time; of every field there is one.

    Args:
        cls: whose fields.
        number: of cases.
        typed: only those that a command of words can be given.
    """
    cases = [case for case in of_fields(cls) if case.refused and (not typed or can_be_typed(cls, case))]
    random.Random(SEED).shuffle(cases)
    first = {case.field: case for case in reversed(cases)}
    assert set(first) == {case.field for case in of_fields(cls)}
    others = [case for case in cases if first[case.field] is not case]
    return [*first.values(), *others][: max(number, len(first))]


def in_hydras_words(value: Any) -> str:
    """A value as one types it for Hydra."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value if value.startswith("${") else "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return "[" + ",".join(map(in_hydras_words, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_hydras_words(item)}" for key, item in value.items()) + "}"
    return str(value) if abs(value) < 10**300 or value != value or isinstance(value, float) else "9" * 400


def told(program: str, count: int, wrong: Sequence[str], fields: int | None = None) -> None:
    """Print how many commands of a storm were refused as they should; fail where not all were."""
    of_fields = f" of {fields} fields" if fields else ""
    print(f"\n{program}: {count} commands{of_fields}, {count - len(wrong)} refused in one message, nothing changed")
    assert not wrong, "\n".join(wrong)


WAYS = [
    [f"hydra.run.dir={EARLIER}"],
    ["-m", "train.log_every=5,6", f"hydra.sweep.dir={EARLIER}"],
    ["-m", "train.log_every=5,6", "hydra/launcher=basic", f"hydra.sweep.dir={EARLIER}"],
]
"""How a command is given a value, beside the value: for a run, for a sweep."""


def test_dbexp(tmp_path: Path) -> None:
    cases = some(Config, 300)
    words = [f"{case.field}={in_hydras_words(case.value)}" for case in cases]
    commands = [[*way, word] for way, word in zip(itertools.cycle(WAYS), words, strict=False)]
    count, wrong = storm(runs.main, "dbexp", commands, tmp_path)
    told("dbexp", count, wrong, len({case.field for case in cases}))


NOWHERE = "/nowhere/at/all"
UNFIT = [
    ["model.path=/nowhere"],
    ["model.path=nobody/nothing"],
    ["model=custom", "model.name=x", f"model.path={__file__}"],
    [f"model.vae={NOWHERE}"],
    ["model.device=cuda:99"],
    ["model.device=toaster"],
    ["model.path=random", "model.family=z_image", "model.precision=fp16"],
    ["dataset=folder", f"dataset.path={NOWHERE}", "dataset.class_noun=dog", "dataset.live=true"],
    ["dataset=folder", f"dataset.path={__file__}", "dataset.class_noun=dog", "dataset.live=true"],
    ["dataset=folder", "dataset.path=.", "dataset.class_noun=dog", "dataset.live=true"],
    ["dataset=dog3", f"dataset.root={NOWHERE}"],
    ["dataset.name=storybook/unicorn"],
    [f"prior.path={NOWHERE}"],
    ["prior.path=."],
    [f"sample.prompts={NOWHERE}.txt"],
    ["sample.prompts=[]"],
    ["sample.prompts=[1,2]"],
    ["sample.prompts={a:1}"],
    ["sample.steps=5000"],
    ["sample.sampler=unipc", "sample.steps=999"],
    ["sample.resolution=8"],
    ["evaluate.lpips.size=1"],
    [f"evaluate.dino.weights={NOWHERE}"],
    ["evaluate.dino.name=nonsense"],
    ["evaluate.dino.crop=65"],
    ["+evaluate.dino.kwargs.img_size=999999"],
    ["+evaluate.dino.kwargs.depth=-1"],
    ["+evaluate.dino.kwargs.nonsense=1"],
    ["evaluate.clip.name=nonsense"],
    [f"evaluate.clip.name=local-dir:{NOWHERE}"],
    [f"evaluate.lpips.trunk={NOWHERE}"],
    [f"evaluate.lpips.heads={__file__}"],
    ["evaluate.dino.mean=[0,0]"],
    ["objective=nonsense"],
    ["objective=[]"],
    ["tracking=online"],
    ["tracking.project='a/b'"],
    ["store=/dev/null/x"],
    ["store=/proc/nowhere"],
    [f"hydra.run.dir={'x' * 300}"],
    ["hydra.run.dir=/dev/null/x"],
    ["-m", "lora.rank=4,0"],
    ["-m", "lora.rank=4,8", "model.path=/nowhere"],
    ["-m", "lora.rank=4,8", f"hydra.sweep.subdir={'x' * 300}/${{hydra.job.num}}"],
    ["-m", "lora.rank=4,8", "hydra.sweep.dir=/dev/null/x"],
    ["-m", "lora.rank=4,8", "sample.steps=10,5000"],
    ["-m", "lora.rank=4,8", "hydra.launcher.size=0"],
    ["-m", "hydra/launcher=basic", "lora.rank=4,8", "hydra.sweep.subdir=x"],
]


def test_dbexp_with_values_that_only_the_disk_or_a_network_refuses(tmp_path: Path) -> None:
    places = [f"hydra.{'sweep' if '-m' in words else 'run'}.dir" for words in UNFIT]
    commands = [
        words if any(word.startswith(place) for word in words) else [*words, f"{place}={EARLIER}"]
        for words, place in zip(UNFIT, places, strict=True)
    ]
    told("dbexp", *storm(runs.main, "dbexp", commands, tmp_path))


@pytest.mark.parametrize(
    ("main", "program", "cls", "more"),
    [
        (generate.main, "dbexp-generate", GenerateConfig, {"prompt": "a {token}", "folder": EARLIER}),
        (export.main, "dbexp-export", ExportConfig, {"folder": EARLIER}),
    ],
    ids=["generate", "export"],
)
def test_a_command_of_words(
    main: Callable[[], object], program: str, cls: type, more: dict[str, str], tmp_path: Path
) -> None:
    run = run_folders.make(tmp_path / "run")
    cases = some(cls, 120, typed=True)
    chosen = [typed_words(cls, {"run": str(run), **more}, case) for case in cases]
    unfit = [f"model={NOWHERE}", "model=nobody/nothing", f"folder={__file__}/x", "store=/dev/null/x", "device=toaster"]
    unfit += [f"run={NOWHERE}", f"run={tmp_path}/run/train", f"run={__file__}"]
    if cls is GenerateConfig:
        unfit += [
            f"init_image={NOWHERE}.png",
            f"init_image={__file__}",
            "prompts=/nowhere.txt",
            "steps=5000",
            "width=8196",
        ]
        unfit += ["prompt={oops}", "sampler=unipc steps=999"]
    for text in unfit:
        given = {"run": str(run), **more} | dict(word.split("=", 1) for word in text.split(" "))
        chosen.append([f"{name}={value}" for name, value in given.items()])
    count, wrong = storm(main, program, chosen, tmp_path / "cases")
    told(program, count, wrong, len({case.field for case in cases}))


def test_estimate(tmp_path: Path) -> None:
    cases, settings = some(EstimateConfig, 80, typed=True), some(Config, 150)
    commands = [typed_words(EstimateConfig, {"card": "t4", "store": EARLIER}, case) for case in cases]
    words = [f"{case.field}={in_hydras_words(case.value)}" for case in settings]
    commands += [["card=t4", word] for word in words]
    commands += [["-m", "card=t4", "seed=1,2", word] for word in words[::5] if not word.startswith("seed")]
    commands += [["card=t4", "model.path=/nowhere"], ["nonsense=1"], ["lora=nonsense", "card=t4"]]
    count, wrong = storm(estimate.main, "dbexp-estimate", commands, tmp_path)
    told("dbexp-estimate", count, wrong, len({case.field for case in (*cases, *settings)}))


def test_compare(tmp_path: Path) -> None:
    run = str(run_folders.make(tmp_path / "sweep" / "0").parent)
    bad = ["a\0b", "x" * 300, "\udce4", "~nobody-has-this-name/x", NOWHERE, __file__, "x/" * 3000, "a\nb"]
    commands = [[value] for value in bad]
    commands += [[run, f"output={value}"] for value in bad if value != NOWHERE]
    commands += [[f"store={value}"] for value in bad if value not in (NOWHERE,)]
    cases = some(CompareConfig, 120, typed=True)
    given = {"sweep": run, "output": EARLIER}
    commands += [
        typed_words(CompareConfig, {"store": EARLIER} if case.field.startswith("prune") else given, case)
        for case in cases
    ]
    commands += [[run, f"objective={value}"] for value in ["nonsense", "${x}", "a\0b", "x" * 3000, "0*dino", "[dino"]]
    commands += [[], ["verify=true"], ["--prune-to-size", "1"], [run, "dry_run=true"], [run, "--sync"]]
    count, wrong = storm(compare.main, "dbexp-compare", commands, tmp_path / "cases")
    told("dbexp-compare", count, wrong, len({case.field for case in cases}))


def spoil(name: str) -> None:
    """Write a file, and refuse."""
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("")
    sys.exit("x: wrong")


@pytest.mark.parametrize(
    ("main", "fault"),
    [
        (lambda: None, "status 0"),
        (lambda: sys.exit(1), "status 1"),  # without a message
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: spoil("x"), r"changed \['x'\]"),
        (lambda: spoil(f"{EARLIER}/results.csv"), r"changed \['earlier/results.csv'\]"),
        (lambda: spoil("y/z"), r"changed \['y', 'y/z'\]"),
        (lambda: sys.exit("x: wrong"), None),
    ],
)
def test_the_judge_is_awake(main: Callable[[], object], fault: str | None, tmp_path: Path) -> None:
    count, wrong = storm(main, "x", [[]], tmp_path)
    assert count == 1 and len(wrong) == (fault is not None)
    assert fault is None or re.search(fault, wrong[0])
