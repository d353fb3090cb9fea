"""Commands in processes forked from the tests' own, which end by themselves or by a signal at a moment of one's choice;
and whether what they leave is what it should be.

Everything that is kept comes to its place by `os.replace`, so that the moments just before and just after each write
are all that a kill can tell apart; what is computed meanwhile is met by the clock.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from hydra.core.global_hydra import GlobalHydra
from numpy.typing import NDArray

import dbexp.pipeline.command
from dbexp.core.store import Entry
from dbexp.pipeline import view
from dbexp.sample import png
from tests.sweeps import exit_status, fork, tiny

PATIENCE_SECONDS = 240.0
"""What takes longer hangs."""
SHORT = ["train.checkpoint_every=2", "sample.images_per_prompt=1", "sample.class_images=2", "sample.batch_size=2"]
"""Overrides for a tiny run that is over even sooner."""
EQUAL = {".safetensors", ".png", ".csv", ".jsonl"}
"""What has the same bytes every time; records and pages tell of seconds and of folders too."""
SKIPPED = (".log", ".lock", ".hydra", "hashes", "multirun.yaml")

ANY = "any"
"""Stage of a moment that comes with a write, whatever its stage."""
_LOADING = "loading"
_STATES = "pack state"
_RESULTS = "results"
_KINDS = {"packs": _STATES, "hashes": _LOADING, "features": "evaluate", "sheet": "evaluate", "latents": "train"}
"""Folders of the store whose name is not that of their stage."""
_STAGES = {"prior", "train", "sample", "evaluate", *_KINDS}


@dataclass(frozen=True)
class Moment:
    """When a signal comes.

    Attributes:
        signum: which.
        stage: of the write that it comes with; None: it comes by the clock.
        count: number of that write among those of its stage, from 1.
        late: it comes just after the write, not just before it.
        seconds: from the start.
    """

    signum: signal.Signals
    stage: str | None = None
    count: int = 1
    late: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class End:
    """What became of a process.

    Attributes:
        status: of its end; minus the signal that killed it.
        text: all that it printed.
        trace: the stages that it came to, one after the other, and one for each of its writes.
        seconds: that it took.
        met: stage that it was in when the signal came; None: it had ended before.
    """

    status: int
    text: str
    trace: tuple[str, ...]
    seconds: float
    met: str | None

    @property
    def writes(self) -> list[str]:
        """Stage of each write."""
        return [line.removeprefix("write ") for line in self.trace if line.startswith("write ")]

    @property
    def made(self) -> list[str]:
        """Entries and pictures of a store that it made, by their paths in there."""
        return [line.removeprefix("made ") for line in self.trace if line.startswith("made ")]


@dataclass(frozen=True)
class Command:
    """A command that is to be killed.

    Attributes:
        program: its name.
        main: its function.
        words: of it, for the name of the folder that it writes to.
    """

    program: str
    main: Callable[[], object]
    words: Callable[[str], list[str]]

    def run(self, name: str) -> Callable[[], object]:
        """What a process does."""

        def work() -> object:
            GlobalHydra.instance().clear()
            sys.argv = [self.program, *self.words(name)]
            return self.main()

        return work


def sweep_of(folder: Path, *swept: str) -> Command:
    """A sweep of tiny runs; every name has a store of its own."""
    return Command("dbexp", dbexp.pipeline.command.main, lambda name: ["-m", *_words(folder, name, "sweep", swept)])


def run_of(folder: Path, *words: str) -> Command:
    """A single tiny run, likewise."""
    return Command("dbexp", dbexp.pipeline.command.main, lambda name: _words(folder, name, "run", words))


def _words(folder: Path, name: str, mode: str, words: Sequence[str]) -> list[str]:
    typed = {word.partition("=")[0] for word in words}
    rest = [word for word in tiny(folder / name / "store") if word.partition("=")[0] not in typed]
    return [f"hydra.{mode}.dir={name}/{mode}", *rest, *words]


@dataclass
class Process:
    """A command on its way.

    Attributes:
        pid: of the process.
        moment: of a signal that it gets.
        begun: when it began.
        trace, output: files that it writes.
    """

    pid: int
    moment: Moment | None
    begun: float
    trace: Path
    output: Path

    def end(self) -> End:
        """Wait for its end, and send it the signal that comes by the clock."""
        moment, done = self.moment, 0
        at = None if moment is None or moment.stage is not None else self.begun + moment.seconds
        while not done:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if not done and at is not None and time.monotonic() >= at:
                assert moment is not None
                with self.trace.open("a") as file:
                    file.write("signal\n")
                os.kill(self.pid, moment.signum)
                at = None
            if not done and time.monotonic() > self.begun + PATIENCE_SECONDS:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"{moment}: it hangs; it printed {self.output.read_text()}")
            time.sleep(0.002)
        lines, met = self.trace.read_text().splitlines(), None
        if "signal" in lines:
            before = [line for line in lines[: lines.index("signal")] if not line.startswith("made ")]
            met = before[-1].removeprefix("write ") if before else _LOADING
        text = self.output.read_text(errors="replace")
        return End(os.waitstatus_to_exitcode(status), text, tuple(lines), time.monotonic() - self.begun, met)


def begin(folder: Path, main: Callable[[], object], moment: Moment | None = None, name: str = "said") -> Process:
    """Begin a command in a forked process.

    Args:
        folder: where it runs.
        main: the command's own function; it reads `sys.argv`, or has its words already.
        moment: of a signal; None: none comes.
        name: of its log in the folder.
    """
    trace, output = folder / f"{name}.trace.log", folder / f"{name}.log"
    trace.write_text("")
    output.write_text("")
    began = time.monotonic()
    return Process(fork(lambda: _work(folder, main, moment, trace, output)), moment, began, trace, output)


def attempt(folder: Path, main: Callable[[], object], moment: Moment | None = None) -> End:
    """Run a command until it ends, or a signal ends it; see `begin`."""
    return begin(folder, main, moment).end()


def _work(folder: Path, main: Callable[[], object], moment: Moment | None, trace: Path, output: Path) -> int:
    """What the forked process does; its exit status is that of the interpreter."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    os.chdir(folder)
    _follow(os.open(trace, os.O_WRONLY | os.O_APPEND), moment)
    return exit_status(main)


def _follow(trace: int, moment: Moment | None) -> None:
    """Note in a file what this process comes to, and send it the signal where that comes with a write."""
    replace, counts = os.replace, dict[str, int]()

    def note(line: str) -> None:
        os.write(trace, f"{line}\n".encode())

    def send() -> None:
        assert moment is not None
        note("signal")
        os.kill(os.getpid(), moment.signum)

    def noted(source: object, target: object) -> None:
        stage = stage_of(Path(str(target)))
        note(f"write {stage}")
        for each in (stage, ANY):
            counts[each] = counts.get(each, 0) + 1
        meant = moment is not None and moment.stage in (stage, ANY) and counts[str(moment.stage)] == moment.count
        if meant and moment is not None and not moment.late:
            send()
        replace(source, target)  # type: ignore[arg-type]  # whatever os.replace takes
        if meant and moment is not None and moment.late:
            send()

    publish, save = Entry.publish, png.save

    def noted_publish(self: Entry) -> None:
        note(f"made {_in_store(self.path)}")
        publish(self)

    def noted_save(pixels: NDArray[np.uint8], path: Path, metadata: Mapping[str, object]) -> None:
        note(f"made {_in_store(path)}")
        save(pixels, path, metadata)

    Entry.publish, png.save = noted_publish, noted_save  # type: ignore[method-assign]  # in this process alone
    os.replace = noted  # type: ignore[assignment]  # likewise
    view.NullView.stage = lambda self, name: note(name)  # type: ignore[method-assign]  # likewise
    view.NullView.trains = lambda self, steps: note("train")  # type: ignore[method-assign]  # likewise


def _in_store(path: Path) -> str:
    return "/".join(path.parts[path.parts.index("store") + 1 :] if "store" in path.parts else path.parts)


def stage_of(target: Path) -> str:
    """The stage that a file belongs to, by its path in the store or in the folder of a run; what is in neither is a
    result."""
    parts = [part for part in target.parts[:-1] if part in _STAGES]
    if "store" in target.parts:
        return _KINDS.get(parts[-1], parts[-1]) if parts else _LOADING
    return (parts or ["sample"])[-1] if target.suffix == ".png" else _RESULTS


def said_well(end: End, moment: Moment, program: str) -> None:
    """What a signal must lead to: SIGKILL to nothing, the others to one message and the shell's exit status, unless
    they came when everything was done."""
    if end.status in (0, -signal.SIGKILL):
        assert end.status == 0 or moment.signum == signal.SIGKILL
        return
    assert end.status == 128 + moment.signum, f"{moment}: status {end.status}\n{end.text}"
    lines = [line for line in end.text.splitlines() if line.startswith(f"{program}: ")]
    assert len(lines) == 1 and end.text.rstrip().endswith(lines[0]), f"{moment}\n{end.text}"
    for wrong in ("Traceback", "Exception ignored"):
        assert wrong not in end.text, f"{moment}\n{end.text}"


def same(whole: Path, killed: Path) -> None:
    """Everything that an uninterrupted command made is there, with the same bytes, and nothing else; locks are free."""
    expected, there = files(whole, *SKIPPED), files(killed, *SKIPPED)
    compared = [name for name in expected if Path(name).suffix in EQUAL and not is_cost(name)]
    assert len(compared) > 2
    assert [name for name in compared if there.get(name, expected[name]) != expected[name]] == [], "other bytes"
    assert sorted({*there} - {*expected}) == [], "there and not expected"
    assert sorted({*expected} - {*there}) == [], "expected and not there"
    assert leftovers(killed) == []
    for path in killed.rglob("*.lock"):
        with FileLock(path, timeout=0):
            pass


def is_cost(name: str) -> bool:
    """Whether a table is of seconds."""
    return Path(name).name == "costs.csv"


def leftovers(root: Path) -> list[Path]:
    """What must not be left when all has ended: anything half written, half deleted or half made."""
    return sorted(path for pattern in ("*.tmp", "*.partial", "*.doomed") for path in root.rglob(pattern))


def files(root: Path, *skipped: str) -> dict[str, bytes]:
    """Every file below a folder with its bytes, by its relative path, but those whose name or folder is `skipped`."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in paths
        if not {*path.relative_to(root).parts, path.suffix} & {*skipped}
    }
