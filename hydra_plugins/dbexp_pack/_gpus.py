"""`executor=gpus`: a process per GPU of this machine, each taking pack after pack.

A process sees one device only, so that a job's `model.device=auto` finds it. It sends back every job as it ends. When
it dies, its pack loses what was not saved, and is tried once more by a new process; the others do not notice.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING

from dbexp.core import interrupts
from dbexp.core.errors import ConfigError, Interrupted
from hydra_plugins.dbexp_pack import _work
from hydra_plugins.dbexp_pack._settings import PackLauncherConf
from hydra_plugins.dbexp_pack._work import PackWork, Returned

if TYPE_CHECKING:
    from dbexp.core.device import Gpu

log = logging.getLogger(__name__)

_CPU = "cpu"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_SAVING_SECONDS = 120.0
"""How long a process that was told to stop may take to save its work."""


def devices(settings: PackLauncherConf) -> list[str]:
    """The device of each process: an entry of CUDA_VISIBLE_DEVICES, or cpu."""
    if settings.devices is not None:
        return [str(device) for device in settings.devices]
    import torch

    visible = [name.strip() for name in os.environ.get(_VISIBLE, "").split(",") if name.strip()]
    return visible or [str(number) for number in range(torch.cuda.device_count())]


def look(settings: PackLauncherConf) -> tuple[Gpu, ...]:
    """What the GPUs of processes are; none where these are on the CPU. A process that ends at once asks CUDA, which
    holds part of a card's memory for whoever has asked, and lets nobody else in on a card that is for one process.

    Raises:
        ConfigError: that process died of it.
    """
    from dbexp.core.device import gpus

    names = [name for name in devices(settings) if name != _CPU]
    if not names:
        return ()
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(1, context, _see_only, (",".join(dict.fromkeys(names)),)) as process:
            return process.submit(gpus).result()
    except BrokenProcessPool:
        raise ConfigError(
            f"hydra.launcher.devices=[{','.join(names)}]: CUDA ends a process that asks for them"
        ) from None


def _see_only(names: str) -> None:
    os.environ[_VISIBLE] = names


def problems(settings: PackLauncherConf) -> list[str]:
    """What is wrong with the choice of devices."""
    if devices(settings):
        return []
    setting = f"hydra.launcher.devices={'null' if settings.devices is None else '[]'}"
    return [f"{setting}: there is no GPU here for executor=gpus; devices=[cpu,cpu] makes two processes on the CPU"]


def device_problems(names: Sequence[str]) -> list[str]:
    """What is wrong with the `model.device` of jobs: a process sees one device, which is the first it knows."""
    return [
        f"model.device={name}: with executor=gpus a process sees one device alone; give model.device=auto, and choose "
        f"devices by hydra.launcher.devices=[{name.removeprefix('cuda:')}]"
        for name in sorted(set(names))
        if name.startswith("cuda:") and name != "cuda:0"
    ]


def run(settings: PackLauncherConf, works: Sequence[PackWork]) -> Generator[Returned, None, None]:
    """Hand packs to processes until all are done.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the processes were told to save and stop.
    """
    if not works:
        return
    queue = deque((work, 1) for work in works)
    folder = Path(works[0].folder) / str(works[0].composed[0].hydra.sweep.dir)
    used = devices(settings)[: len(works)]
    workers = [_Worker(device, folder / f"worker_{number}.log") for number, device in enumerate(used)]
    with _stopping(workers):
        for worker in workers:
            worker.take(*queue.popleft())
        while busy := {worker.connection: worker for worker in workers if worker.work is not None}:
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]  # wait gives back what it was given
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    yield from _lost(worker, queue)
                    if queue:
                        worker.restart()
                else:
                    if message is not None:
                        worker.missing.discard(message[0])
                        yield message
                        continue
                    worker.work = None
                if queue:
                    worker.take(*queue.popleft())


def _lost(worker: _Worker, queue: deque[tuple[PackWork, int]]) -> Iterator[Returned]:
    """A process died: put the rest of its pack in front of the queue, or tell what is lost if it was the second try."""
    assert worker.work is not None
    work, attempt = worker.work, worker.attempt
    rest, worker.work = work.only(sorted(worker.missing)), None
    cause = f"the process on device {worker.device} {worker.end()}; it said {worker.log}"
    if not rest.jobs:
        return
    if attempt == 1:
        log.warning("%s: %s; its %d jobs are tried once more", work.name, cause, len(rest.jobs))
        queue.appendleft((rest, attempt + 1))
        return
    log.warning("%s: %s, for the second time; going on without it", work.name, cause)
    yield from _work.recover(rest, f"{work.name}: {cause}, twice")


class _Worker:
    """A process with a device of its own.

    Args:
        device: what it sees.
        log: file for everything it says.

    Attributes:
        work, attempt: what it is doing, None when nothing; and how often that was begun.
        missing: numbers of the jobs of its pack that have not come back.
    """

    def __init__(self, device: str, log: Path) -> None:
        self.device, self.log = device, log
        self.work: PackWork | None = None
        self.attempt = 0
        self.missing: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """Begin a new process."""
        context = multiprocessing.get_context("spawn")  # a CUDA context does not survive a fork
        self.connection, far_end = context.Pipe()
        self.process = context.Process(target=_serve, args=(far_end, self.device, str(self.log)))
        self.process.start()
        far_end.close()  # so that its end is noticed here

    def take(self, work: PackWork, attempt: int) -> None:
        """Begin a pack."""
        self.work, self.attempt, self.missing = work, attempt, {job.number for job in work.jobs}
        log.info("%s: on device %s, process %d", work.name, self.device, self.process.pid)
        with contextlib.suppress(OSError):  # one that has just died is found dead by its silence
            self.connection.send(work)

    def end(self) -> str:
        """How the process ended, once it has."""
        self.process.join()
        code = self.process.exitcode or 0
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


@contextlib.contextmanager
def _stopping(workers: Sequence[_Worker]) -> Iterator[None]:
    """Whatever ends the block ends the processes too; on a signal they save first."""
    with interrupts.sigterm_raised():
        try:
            yield
        except KeyboardInterrupt as stop:
            raise Interrupted(interrupts.signum_of(stop), _stop(workers)) from None
        finally:
            for worker in workers:
                worker.connection.close()  # an idle process ends by itself
            _stop([worker for worker in workers if worker.work is not None])
            for worker in workers:
                worker.process.join()


def _stop(workers: Sequence[_Worker]) -> str:
    """Tell processes to save and end; those that do not are killed."""
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_SAVING_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
    return "the sweep was stopped, its processes saved what they had; the same command goes on from there"


# -- in the process ----------------------------------------------------------------------------------------------------


def _serve(connection: Connection, device: str, log_file: str) -> None:
    """Run packs until the sweep's process closes the connection."""
    _redirect_output(Path(log_file))
    os.environ[_VISIBLE] = "" if device == _CPU else device  # before anything asks CUDA
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with interrupts.sigterm_raised():
            _serve_packs(connection)
    except Interrupted as stop:  # everything is saved
        print(stop, flush=True)
        sys.exit(128 + stop.signum)
    except KeyboardInterrupt as stop:
        sys.exit(128 + interrupts.signum_of(stop))


def _serve_packs(connection: Connection) -> None:
    while True:
        try:
            work: PackWork = connection.recv()
        except EOFError:
            return
        _work.enter(work)
        for number, returned in _work.run(work):
            connection.send((number, _work.portable(returned)))
        connection.send(None)


def _redirect_output(path: Path) -> None:
    """Everything this process prints goes to a file: several on one terminal could not be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)


def _end_with_parent() -> None:
    """A sweep that was killed must not leave processes behind that hold a GPU; they save what they have first."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
