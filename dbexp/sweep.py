"""A sweep before its jobs run: look at all of them, say what will happen, train them together.

Nothing here decides a result. Training leaves its LoRAs in the store, where each job, run on its own as always, finds
them; a job that is run without its sweep trains alone and gets the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbexp import models, pack, stages
from dbexp.compare import print_grid
from dbexp.config import Config
from dbexp.errors import ConfigError, Interrupted, Problems
from dbexp.lane import Task
from dbexp.models import Model
from dbexp.store import Store
from dbexp.train import inputs_of, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: in the sweep.
        overrides: all of the user's, as on the command line.
        differs: what tells it from the others, in short.
        config: checked.
    """

    number: int
    overrides: tuple[str, ...]
    differs: tuple[str, ...]
    config: Config

    @property
    def title(self) -> str:
        """Number and what differs, for messages."""
        return title(self.number, self.differs)


def title(number: int, differs: Sequence[str]) -> str:
    """How messages call a job."""
    return f"job {number} ({' '.join(differs)})" if differs else f"job {number}"


@dataclass(frozen=True)
class Plan:
    """What a sweep will do.

    Attributes:
        jobs: in their order.
        packs: jobs to train, gathered; the others have their LoRA in the store.
    """

    jobs: tuple[Job, ...]
    packs: tuple[tuple[Job, ...], ...]

    @property
    def trained(self) -> tuple[Job, ...]:
        """Jobs with nothing left to train."""
        waiting = {job.number for members in self.packs for job in members}
        return tuple(job for job in self.jobs if job.number not in waiting)


def check(jobs: Sequence[Job], known: Sequence[str] = ()) -> None:
    """Look at every job before the first one starts: inputs first, then base models and metric backbones.

    Args:
        jobs: all of a sweep whose settings are right.
        known: problems that were found before, to be told with those of the inputs.

    Raises:
        ConfigError: with every problem of every job, each problem once.
    """
    _check_each(jobs, stages.check_inputs, known)
    _check_each(jobs, lambda config: stages.load(config, stages.open_store(config)))


def _check_each(jobs: Sequence[Job], look: Callable[[Config], object], known: Sequence[str] = ()) -> None:
    """Apply a check to every job, and tell what is wrong with which."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        try:
            look(job.config)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem, []).append(job)
    problems = Problems()
    problems.messages += known
    for problem, members in found.items():
        shared = len(members) == len(jobs)
        problems.messages.append(problem if shared else f"{', '.join(job.title for job in members)}: {problem}")
    problems.raise_if_any()


def plan(jobs: Sequence[Job], size: int) -> Plan:
    """Find out what is in the store, and gather the rest into packs.

    Args:
        jobs: that passed `check`.
        size: most lanes of a pack.
    """
    todo = [job for job in jobs if not _is_trained(job)]
    gathered = pack.packs([job.config for job in todo], size)
    return Plan(tuple(jobs), tuple(tuple(todo[index] for index in members) for members in gathered))


def _is_trained(job: Job) -> bool:
    """Whether the store has everything up to the LoRA."""
    store = stages.open_store(job.config)
    model = models.load(job.config.model, store)
    task = stages.find_task(job.config, model, store)
    return task is not None and store.find("train", inputs_of(task, model)) is not None


def show(planned: Plan, console: Console | None = None) -> None:
    """Print a plan: a line per job.

    Args:
        planned: what to show.
        console: where to; None: standard error, so that standard output is the results' alone.
    """
    console = console or Console(stderr=True)
    trained, packs = len(planned.trained), len(planned.packs)
    training = f"{len(planned.jobs) - trained} to train in {packs} pack{'s' * (packs != 1)}, {trained} in the store"
    grid = Table()
    for heading in ("job", "what differs", "training"):
        grid.add_column(heading, overflow="fold")
    place = {job.number: number for number, members in enumerate(planned.packs, start=1) for job in members}
    for job in planned.jobs:
        state = f"pack {place[job.number]}" if job.number in place else "in the store"
        grid.add_row(str(job.number), Text(" ".join(job.differs)), state)
    print_grid(f"{len(planned.jobs)} jobs: {training}", grid, console)


def train_pack(members: Sequence[Job]) -> None:
    """Train jobs together. What fails here fails again, with its own message, when its job is run: it is only logged.

    When memory does not suffice, the pack is halved, and its halves are trained one after the other.

    Raises:
        Interrupted: a signal came; everything is saved.
    """
    store = stages.open_store(members[0].config)
    model = models.load(members[0].config.model, store)
    tasks: list[tuple[Job, Task]] = []
    for job in members:
        try:
            tasks.append((job, stages.make_task(job.config, model, store)))
        except Interrupted:
            raise
        except Exception as error:  # a fault in one job must not cost the others theirs
            log.warning("%s: left out of its pack: %s: %s", job.title, type(error).__name__, error)
    if tasks:
        log.info("training jobs %s together", ", ".join(str(job.number) for job, _ in tasks))
    started = time.perf_counter()
    _train_halving(tasks, model, store)
    log.info("training took %.1f s", time.perf_counter() - started)


def _train_halving(tasks: Sequence[tuple[Job, Task]], model: Model, store: Store) -> None:
    if not tasks:
        return
    try:
        results = train([task for _, task in tasks], model, store)
    except torch.OutOfMemoryError:
        results = None  # what the exception holds in memory is freed when this block is left
    except Interrupted:
        raise
    except Exception as error:
        log.warning("the pack failed (%s: %s); each of its jobs trains alone", type(error).__name__, error)
        return
    if results is not None:
        for (job, _), result in zip(tasks, results, strict=True):
            if isinstance(result, Exception):
                log.warning("%s: %s", job.title, result)
        return
    if len(tasks) == 1:
        log.warning("%s does not fit in memory even alone; its run will say so", tasks[0][0].title)
        return
    log.warning("%d runs do not fit in memory together; going on with half of them at a time", len(tasks))
    torch.cuda.empty_cache()
    middle = (len(tasks) + 1) // 2
    _train_halving(tasks[:middle], model, store)
    _train_halving(tasks[middle:], model, store)
