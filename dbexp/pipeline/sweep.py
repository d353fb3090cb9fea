"""A sweep before its jobs run: look at all of them, say what will happen, train them together.

Nothing here decides a result. Training leaves its LoRAs in the store, where each job, run on its own as always, finds
them; a job that is run without its sweep trains alone and gets the same.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbexp import models, tracking
from dbexp.compare.table import print_grid
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError, Interrupted, Problems, count
from dbexp.core.store import Store
from dbexp.models import Model
from dbexp.pipeline import run as stages
from dbexp.pipeline import view as live
from dbexp.runs.outcome import Outcome
from dbexp.train import memory, packing, resume
from dbexp.train.data import Training
from dbexp.train.result import inputs_of
from dbexp.train.train import train

log = logging.getLogger(__name__)

_worked: dict[str, int] = {}
"""What the runs of a pack have in common -> most lanes that memory sufficed for, once it did not for more."""


@dataclass(frozen=True)
class PlannedRun:
    """One job of a sweep.

    Attributes:
        number: in the sweep.
        overrides: all of the user's, as on the command line.
        differs: what tells it from the others, in short.
        config: checked.
        folder: of its run, for what is tracked while its pack trains; None: nothing is.
        sweep: name of its sweep, which groups what is tracked.
    """

    number: int
    overrides: tuple[str, ...]
    differs: tuple[str, ...]
    config: Config
    folder: Path | None = None
    sweep: str | None = None

    @property
    def title(self) -> str:
        """Number and what differs, for messages."""
        return title(self.number, self.differs)


def title(number: int, differs: Sequence[str]) -> str:
    """How messages call a job."""
    return f"job {number} ({' '.join(differs)})" if differs else f"job {number}"


_Lane: TypeAlias = Sequence[tuple[PlannedRun, Training]]
"""Runs that are one training, each with a finish line of its own."""


@dataclass(frozen=True)
class Plan:
    """What a sweep will do.

    Attributes:
        jobs: in their order.
        packs: jobs to train, gathered; the others have their LoRA in the store.
    """

    jobs: tuple[PlannedRun, ...]
    packs: tuple[tuple[PlannedRun, ...], ...]

    @property
    def trained(self) -> tuple[PlannedRun, ...]:
        """Jobs with nothing left to train."""
        waiting = {job.number for members in self.packs for job in members}
        return tuple(job for job in self.jobs if job.number not in waiting)


def check(jobs: Sequence[PlannedRun], known: Sequence[str] = (), *, elsewhere: bool = False) -> None:
    """Look at every job before the first one starts: inputs first, then base models and metric backbones.

    Args:
        jobs: all of a sweep whose settings are right.
        known: problems that were found before, to be told with those of the inputs.
        elsewhere: they will run on other machines, so that it does not matter which devices this one has.

    Raises:
        ConfigError: with every problem of every job, each problem once.
    """

    def load(config: Config) -> None:
        here = replace(config, model=replace(config.model, device="cpu")) if elsewhere else config
        stages.load(here, stages.open_store(config))

    _check_each(jobs, stages.check_inputs, known)
    _check_each(jobs, load)


def _check_each(jobs: Sequence[PlannedRun], look: Callable[[Config], object], known: Sequence[str] = ()) -> None:
    """Apply a check to every job, and tell what is wrong with which."""
    found: dict[str, list[PlannedRun]] = {}
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


def plan(jobs: Sequence[PlannedRun], size: int | None, *, workers: int = 1, elsewhere: bool = False) -> Plan:
    """Find out what is in the store, and gather the rest into packs.

    Args:
        jobs: that passed `check`.
        size: most lanes of a pack; None: as many as are useful, but every worker gets something to do.
        workers: how many packs run at a time.
        elsewhere: they will run on other machines, whose precision only these know when it is `auto`.
    """
    todo = [job for job in jobs if not _is_trained(job, elsewhere)]
    begun = [] if elsewhere else _begun_together(todo)
    if size is None:
        lanes = len({packing.trajectory(packing.planned(job.config)) for job in todo})
        size = max(1, min(memory.most_lanes(todo[0].config.model.device) if todo else 1, -(-lanes // workers)))
    resumed = {job.number for members in begun for job in members}
    fresh = [job for job in todo if job.number not in resumed]
    gathered = [
        tuple(fresh[index] for index in members) for members in packing.packs([job.config for job in fresh], size)
    ]
    return Plan(tuple(jobs), (*begun, *gathered))


def _begun_together(jobs: Sequence[PlannedRun]) -> list[tuple[PlannedRun, ...]]:
    """Packs that an interruption left half done: the same lanes must go on together (see `pack_state`)."""
    gathered = []
    stores = {job.config.store: stages.open_store(job.config) for job in jobs}
    for name, store in stores.items():
        if not (packs := resume.begun(store)):
            continue
        members = [job for job in jobs if job.config.store == name]
        entries = [_entry(job, store) for job in members]
        gathered += [tuple(members[index] for index in indices) for indices in resume.together(packs, entries)]
    return gathered


def _entry(job: PlannedRun, store: Store) -> str:
    """Where the store keeps a job's training, relative to its root; empty if that cannot be known yet."""
    model = models.load(job.config.model, store)
    training = stages.find_training(job.config, model, store)
    return (
        "" if training is None else store.path("train", inputs_of(training, model)).relative_to(store.root).as_posix()
    )


def _is_trained(job: PlannedRun, elsewhere: bool) -> bool:
    """Whether the store is known to have everything up to the LoRA."""
    config = job.config
    if elsewhere:
        if config.model.precision == "auto":
            return False
        config = replace(config, model=replace(config.model, device="cpu"))
    store = stages.open_store(config)
    model = models.load(config.model, store)
    training = stages.find_training(config, model, store)
    return training is not None and store.find("train", inputs_of(training, model)) is not None


def show(planned: Plan, console: Console | None = None) -> None:
    """Print a plan: a line per job.

    Args:
        planned: what to show.
        console: where to; None: standard error, so that standard output is the results' alone.
    """
    console = console or Console(stderr=True)
    trained, packs = len(planned.trained), len(planned.packs)
    training = f"{len(planned.jobs) - trained} to train in {count(packs, 'pack')}, {trained} in the store"
    grid = Table()
    for heading in ("job", "what differs", "training"):
        grid.add_column(heading, overflow="fold")
    place = {job.number: number for number, members in enumerate(planned.packs, start=1) for job in members}
    for job in planned.jobs:
        state = f"pack {place[job.number]}" if job.number in place else "in the store"
        grid.add_row(str(job.number), Text(" ".join(job.differs)), state)
    print_grid(f"{len(planned.jobs)} jobs: {training}", grid, console)


def train_pack(members: Sequence[PlannedRun], size: int | None = None) -> None:
    """Train jobs together. What fails here fails again, with its own message, when its job is run: it is only logged.

    When memory does not suffice, half as many go on together, and this process remembers it for later packs.

    Args:
        members: of the pack.
        size: most lanes at once, as the user gave it; None: as many as the memory of the device has room for.

    Raises:
        Interrupted: a signal came; everything is saved.
    """
    store = stages.open_store(members[0].config)
    model = models.load(members[0].config.model, store)
    lanes: dict[str, list[tuple[PlannedRun, Training]]] = {}
    for job in members:
        try:
            training = stages.make_training(job.config, model, store)
        except Interrupted:
            raise
        except Exception as error:  # a fault in one job must not cost the others theirs
            log.warning("%s: left out of its pack: %s: %s", job.title, type(error).__name__, error)
        else:
            lanes.setdefault(packing.trajectory(packing.planned(job.config)), []).append((job, training))
    if not lanes:
        return
    started = time.perf_counter()
    _train_lanes(list(lanes.values()), size, model, store)
    log.info("training took %.1f s", time.perf_counter() - started)


def _train_lanes(lanes: Sequence[_Lane], size: int | None, model: Model, store: Store) -> None:
    """Train lanes, as many at a time as there is room for."""
    settings = json.dumps(packing.shared(lanes[0][0][0].config), sort_keys=True)
    waiting = deque(lanes)
    room = len(lanes) if size is None else size
    if settings in _worked:
        room = min(room, _worked[settings])
        log.info("pack size: at most %d lanes, for more did not fit in memory before", _worked[settings])
    elif size is None and len(lanes) > 1:
        room = memory.room([lane[0][1] for lane in lanes], model, store)
    while waiting:
        together = -(-len(waiting) // -(-len(waiting) // room))  # shares of like size
        taken = [waiting.popleft() for _ in range(together)]
        if _train([run for lane in taken for run in lane], model, store):
            continue
        if together == 1:
            log.warning("%s does not fit in memory even alone; its run will say so", taken[0][0][0].title)
            continue
        room = _worked[settings] = together // 2
        log.warning("%d lanes do not fit in memory together; from now on at most %d at a time", together, room)
        waiting.extendleft(reversed(taken))


def _train(runs: _Lane, model: Model, store: Store) -> bool:
    """Train runs together; whether memory sufficed."""
    view, numbers = live.current(), [job.number for job, _ in runs]
    log.info("training jobs %s together", ", ".join(map(str, numbers)))
    view.trains({job.number: job.config.train.steps for job, _ in runs})
    with ExitStack() as stack:
        trackers = [_track(job, stack) for job, _ in runs]

        def on_rows(number: int, rows: Sequence[Mapping[str, float]]) -> None:
            view.losses(numbers[number], rows)
            trackers[number].train(rows)

        results = _results([training for _, training in runs], model, store, on_rows)
    if results is None:
        memory.release()
        return False
    for (job, _), result in zip(runs, results, strict=False):  # none, where the pack failed as a whole
        if isinstance(result, Exception):
            log.warning("%s: %s", job.title, result)
    return True


def _track(job: PlannedRun, stack: ExitStack) -> tracking.Tracker:
    """Where the losses of a job go while its pack trains. Its run goes on with the same W&B run.

    Only the dashboard of a run that is online has somebody who looks. All else the run itself writes, from the history.
    """
    if job.folder is None or job.config.tracking.mode != "online":
        return tracking.Disabled()
    run = Outcome.of(job.config, job.folder, job.overrides)
    try:
        started = tracking.start(run.config, folder=job.folder, name=run.name, group=job.sweep, overrides=job.overrides)
        return stack.enter_context(started)
    except ConfigError as error:  # a machine without the login, say: the run will tell
        log.warning("%s: no live losses: %s", job.title, error)
        return tracking.Disabled()


def _results(
    trainings: Sequence[Training],
    model: Model,
    store: Store,
    on_rows: Callable[[int, Sequence[Mapping[str, float]]], None],
) -> Sequence[object] | None:
    """What became of each of the runs that trained together, as far as that is known; None: memory did not suffice."""
    try:
        return train(trainings, model, store, on_rows)
    except Interrupted:
        raise
    except Exception as error:
        if memory.is_out_of_memory(error):
            return None  # what the exception holds in memory is freed with this block
        log.warning("the pack failed (%s: %s); each of its jobs trains alone", type(error).__name__, error)
        return ()
