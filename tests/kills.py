"""Commands that a signal ends at a moment of one's choice, in processes forked from the tests' own.

Everything that is kept comes to its place by `os.replace`, so that the moments just before and just after each write
are all that a kill can tell apart; what is computed meanwhile is met by the clock.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dbexp.pipeline import view
from tests.sweeps import fork

PATIENCE_SECONDS = 240.0
"""What takes longer hangs."""
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


def attempt(folder: Path, main: Callable[[], object], moment: Moment | None = None) -> End:
    """Run a command in a forked process until it ends, or a signal ends it.

    Args:
        folder: where it runs.
        main: the command's own function; it reads `sys.argv`, or has its words already.
        moment: of a signal; None: none comes.
    """
    trace, output, begun = folder / "trace.log", folder / "said.log", time.monotonic()
    trace.write_text("")
    child = fork(lambda: _work(folder, main, moment, trace, output))
    at = begun + moment.seconds if moment is not None and moment.stage is None else None
    done = 0
    while not done:
        done, status = os.waitpid(child, os.WNOHANG)
        if not done and at is not None and time.monotonic() >= at:
            with trace.open("a") as file:
                file.write("signal\n")
            assert moment is not None
            os.kill(child, moment.signum)
            at = None
        if not done and time.monotonic() > begun + PATIENCE_SECONDS:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"{moment}: it hangs; it printed {output.read_text()}")
        time.sleep(0.002)
    lines = trace.read_text().splitlines()
    met = None
    if "signal" in lines:
        met = next((line.removeprefix("write ") for line in reversed(lines[: lines.index("signal")])), _LOADING)
    code = os.waitstatus_to_exitcode(status)
    return End(code, output.read_text(errors="replace"), tuple(lines), time.monotonic() - begun, met)


def _work(folder: Path, main: Callable[[], object], moment: Moment | None, trace: Path, output: Path) -> int:
    """What the forked process does; its exit status is that of the interpreter."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    sys.stdout, sys.stderr = (os.fdopen(descriptor, "w", buffering=1) for descriptor in (1, 2))
    os.chdir(folder)
    _follow(os.open(trace, os.O_WRONLY | os.O_APPEND), moment)
    try:
        main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return 1 if isinstance(stop.code, str) else int(stop.code or 0)
    return 0


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
        counts[stage] = counts.get(stage, 0) + 1
        note(f"write {stage}")
        meant = moment is not None and (stage, counts[stage]) == (moment.stage, moment.count)
        if meant and moment is not None and not moment.late:
            send()
        replace(source, target)  # type: ignore[arg-type]  # whatever os.replace takes
        if meant and moment is not None and moment.late:
            send()

    os.replace = noted  # type: ignore[assignment]  # in this process alone
    view.NullView.stage = lambda self, name: note(name)  # type: ignore[method-assign]  # likewise
    view.NullView.trains = lambda self, steps: note("train")  # type: ignore[method-assign]  # likewise


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


def leftovers(root: Path) -> list[Path]:
    """What must not be left when all has ended: anything half written, deleted or made, and states of packs."""
    wrong = [path for pattern in ("*.tmp", "*.partial", "*.doomed") for path in root.rglob(pattern)]
    return sorted([*wrong, *root.glob("packs/*.*")])


def files(root: Path, *skipped: str) -> dict[str, bytes]:
    """Every file below a folder with its bytes, by its relative path, but those whose name or folder is `skipped`."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in paths
        if not {*path.relative_to(root).parts, path.suffix} & {*skipped}
    }
