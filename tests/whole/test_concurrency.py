"""Several processes on one store: each thing is made by one of them, and all of them end as if they were alone.

`pytest -m slow -s` shows how many processes did what.
"""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import pytest

import dbexp.compare.command
import dbexp.compare.page.page
import dbexp.export.command
import dbexp.generate.command
import dbexp.pipeline.command
import dbexp.pipeline.run
import dbexp.pipeline.sweep
from tests.processes import SHORT, Command, End, Moment, Process, attempt, begin, leftovers, run_of, sweep_of
from tests.sweeps import results

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="only here can a process be forked")

SWEPT = ["lora.rank=2,3", "train.steps=3,5", "sample.images_per_prompt=1", "sample.class_images=2"]
SMALL = ["lora.rank=2,3", "train.steps=3", *SHORT]
HOURS = 2 * 3600.0
seen: Counter[str] = Counter()


def on_one_store(folder: Path, name: str, *swept: str) -> Command:
    """A sweep into a folder of its own, and into the store that all share."""
    shared = sweep_of(folder, *swept, f"store={folder}/store")
    return Command(shared.program, shared.main, lambda _: shared.words(name))


def fixed(program: str, main: Callable[[], object], words: list[str]) -> Command:
    """A command that writes where its words say, whatever name it is given."""
    return Command(program, main, lambda _: words)


def ends(processes: Sequence[Process]) -> list[End]:
    """Wait for all of them; each must end well."""
    every = [process.end() for process in processes]
    for end in every:
        assert end.status == 0 and "Traceback" not in end.text, end.text
    return every


def each_once(every: Sequence[End], store: Path) -> Counter[str]:
    """Nothing was made twice, and nothing is half there; entries that were made, by stage."""
    made = [path for end in every for path in end.made]
    assert [path for path, count in Counter(made).items() if count > 1] == []
    assert leftovers(store) == [] and not list((store / "packs").glob("*"))
    return Counter(path.split("/")[0] for path in made if not path.endswith(".png"))


def count(what: str, processes: int, made: object = "") -> None:
    seen[what] += processes
    print(f"\n{what}: {processes} processes {made}; {seen.total()} processes so far")


@pytest.mark.parametrize(
    ("number", "launcher"),
    [
        (2, "pack"),
        pytest.param(4, "pack", marks=pytest.mark.slow),
        pytest.param(2, "basic", marks=pytest.mark.slow),
    ],
)
def test_they_share_the_work(tmp_path: Path, number: int, launcher: str) -> None:
    names = [f"sweep{n}" for n in range(number)]
    commands = [on_one_store(tmp_path, name, f"hydra/launcher={launcher}", *SWEPT) for name in names]
    every = ends([begin(tmp_path, command.run(name), name=name) for name, command in zip(names, commands, strict=True)])
    tables = {(tmp_path / name / "sweep" / "results.csv").read_bytes() for name in names}
    assert len(tables) == 1 and tables.pop().count(b"finished") == 4
    kinds = each_once(every, tmp_path / "store")
    assert kinds["train"] == kinds["evaluate"] == 4 and kinds["prior"] == 1
    count(f"the same sweep, {launcher} launcher", number, dict(kinds))


@pytest.mark.slow
def test_one_of_them_is_killed_and_the_other_goes_on(tmp_path: Path) -> None:
    whole = attempt(tmp_path, sweep_of(tmp_path, *SMALL).run("whole"))
    assert whole.status == 0, whole.text
    for stage, at in (("pack state", 3), ("sample", 1)):
        folder = tmp_path / f"{at}"
        folder.mkdir()
        killed = begin(folder, on_one_store(folder, "a", *SMALL).run("a"), Moment(signal.SIGKILL, stage, at), "a")
        while "write pack state" not in killed.trace.read_text():
            assert not process_ended(killed), killed.output.read_text()
            time.sleep(0.01)
        other = begin(folder, on_one_store(folder, "b", *SMALL).run("b"), name="b")
        assert killed.end().status == -signal.SIGKILL
        ends([other])
        expected = (tmp_path / "whole" / "sweep" / "results.csv").read_bytes()
        assert (folder / "b" / "sweep" / "results.csv").read_bytes() == expected
        assert leftovers(folder / "store") == []
        count(f"the same sweep, one of them killed at a {stage}", 2)


@pytest.mark.slow
def test_two_sweeps_of_the_same_second(tmp_path: Path) -> None:
    """Nobody named their folders, which the clock calls alike."""
    swept = (["lora.rank=2", "train.steps=3,4"], ["lora.rank=3", "train.steps=3,4"])
    shared = [on_one_store(tmp_path, "any", *words, *SHORT) for words in swept]
    typed = [[word for word in each.words("any") if "sweep.dir" not in word] for each in shared]
    commands = [fixed("dbexp", dbexp.pipeline.command.main, words) for words in typed]
    time.sleep(1 - datetime.now().microsecond / 1e6)
    ends([begin(tmp_path, command.run("any"), name=f"s{n}") for n, command in enumerate(commands)])
    folders = sorted((tmp_path / "multirun").glob("*/*"))
    assert len(folders) == 2
    assert [len(results(folder)) for folder in folders] == [2, 2]
    configs = [(folder / "0" / ".hydra" / "overrides.yaml").read_text() for folder in folders]
    assert sorted("lora.rank=3" in text for text in configs) == [False, True]
    count(f"two sweeps at once, in {' and '.join(folder.name for folder in folders)}", 2)


@pytest.mark.slow
def test_what_looks_at_a_sweep_that_runs_does_not_disturb_it(tmp_path: Path) -> None:
    whole = attempt(tmp_path, sweep_of(tmp_path, *SMALL).run("whole"))
    assert whole.status == 0, whole.text
    command = on_one_store(tmp_path, "looked", *SMALL)
    running, looks = begin(tmp_path, command.run("looked"), name="sweep"), Counter[str]()
    sweep, store = tmp_path / "looked" / "sweep", tmp_path / "store"
    kinds = {
        "compare": [str(sweep)],
        "compare elsewhere": [str(sweep), f"output={tmp_path}/elsewhere"],
        "verify": [f"store={store}", "verify=true"],
        "list": [f"store={store}"],
        "prune": [f"store={store}", "prune_older_than=0"],
        "prune to nothing": [f"store={store}", "prune_to_size=0"],
    }
    while not process_ended(running):
        for kind, words in kinds.items():
            ready = (sweep / "results.csv").exists() if kind.startswith("compare") else store.exists()
            if ready:
                look = fixed("dbexp-compare", dbexp.compare.command.main, words)
                end = attempt(tmp_path, look.run("any"))
                assert end.status == 0 and "Traceback" not in end.text, end.text
                looks[kind] += 1
        time.sleep(0.05)
    ends([running])
    expected = (tmp_path / "whole" / "sweep" / "results.csv").read_bytes()
    assert (sweep / "results.csv").read_bytes() == expected and {*looks} == {*kinds}
    assert leftovers(sweep) == [] and leftovers(store) == []
    count("looked at while it runs", 1 + looks.total(), dict(looks))


def process_ended(process: Process) -> bool:
    """Whether it has; it can still be waited for."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


@pytest.mark.slow
def test_pruning_what_a_sweep_is_about_to_use(tmp_path: Path) -> None:
    """Everything in the store is old, until somebody uses it."""
    command = on_one_store(tmp_path, "first", *SMALL)
    ends([begin(tmp_path, command.run("first"))])
    expected, prunes = (tmp_path / "first" / "sweep" / "results.csv").read_bytes(), 0
    for name in ("second", "third"):
        for path in (tmp_path / "store").rglob("*"):
            os.utime(path, (time.time() - HOURS,) * 2)
        running = begin(tmp_path, on_one_store(tmp_path, name, *SMALL).run(name), name=name)
        time.sleep({"second": 0.0, "third": 2.0}[name])
        while not process_ended(running):
            words = [f"store={tmp_path}/store", "prune_older_than=0.05"]
            prune = fixed("dbexp-compare", dbexp.compare.command.main, words)
            end = attempt(tmp_path, prune.run("any"))
            assert end.status == 0, end.text
            prunes += 1
        ends([running])
        assert (tmp_path / name / "sweep" / "results.csv").read_bytes() == expected
    count("pruned while it runs", 2 + prunes)


@pytest.mark.slow
def test_a_folder_that_somebody_named_is_for_one_process(tmp_path: Path) -> None:
    for mode, command in (("sweep", sweep_of(tmp_path, *SMALL)), ("run", run_of(tmp_path, "train.steps=3", *SHORT))):
        whole = attempt(tmp_path, command.run(f"whole-{mode}"))
        assert whole.status == 0, whole.text
        processes = [begin(tmp_path, command.run(mode), name=f"{mode}{n}") for n in range(3)]
        every = sorted((process.end() for process in processes), key=lambda end: end.status)
        assert [end.status for end in every] == [0, 1, 1], [end.text for end in every]
        for end in every[1:]:
            (line,) = (line for line in end.text.splitlines() if line.startswith(f"dbexp: hydra.{mode}.dir="))
            assert f"/{mode}/{mode}: another process that still runs writes to this folder" in line
            assert "Traceback" not in end.text
        expected, there = (
            {
                path.relative_to(tmp_path / name / mode).as_posix(): path.read_bytes()
                for path in (tmp_path / name / mode).rglob("*.safetensors")
            }
            for name in (f"whole-{mode}", mode)
        )
        assert there == expected != {}
        count(f"a {mode} in one folder", 3)


@pytest.mark.slow
def test_exports_and_pictures_in_one_folder(tmp_path: Path) -> None:
    made = attempt(tmp_path, run_of(tmp_path, "train.steps=3", *SHORT).run("made"))
    assert made.status == 0, made.text
    run = tmp_path / "made" / "run"
    store = f"store={tmp_path}/other"

    def export(name: str) -> list[str]:
        return [f"run={run}", "check_steps=2", store, f"folder={name}"]

    def generate(name: str) -> list[str]:
        return [f"run={run}", "prompts=auto", "steps=2", "batch_size=2", store, f"folder={name}"]

    for program, main, words in (
        ("dbexp-export", dbexp.export.command.main, export),
        ("dbexp-generate", dbexp.generate.command.main, generate),
    ):
        command = Command(program, main, words)
        alone = attempt(tmp_path, command.run(f"{program}-alone"))
        assert alone.status == 0, alone.text
        every = [p.end() for p in [begin(tmp_path, command.run(program), name=f"{program}{n}") for n in range(3)]]
        for end in every:
            busy = "another process that still runs writes to this folder" in end.text
            assert "Traceback" not in end.text and end.status == int(busy), end.text
        assert any(end.status == 0 for end in every)
        expected, there = (
            {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
            for name in (f"{program}-alone", program)
        )
        assert there == expected and not list(tmp_path.glob(".*"))
        refused = sum(end.status for end in every)
        count(f"{program} into one folder, {refused} refused", 3)
