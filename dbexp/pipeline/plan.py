"""A sweep before its runs: look at all of them, find out what is trained, gather the rest into packs, say so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dbexp import models
from dbexp.compare.table import print_grid
from dbexp.config.families import FAMILIES
from dbexp.config.schema import Config
from dbexp.core.device import Gpu, auto_precision
from dbexp.core.errors import ConfigError, Problems, count, listed
from dbexp.core.store import Store
from dbexp.pipeline import prepare
from dbexp.train import memory, packing, resume
from dbexp.train.result import inputs_of

_MOST_TITLES = 5
"""Of the runs that a problem is told of."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        number: in the sweep.
        overrides: all of the user's, as on the command line.
        differs: what tells it from the others, in short.
        config: checked.
        folder: of the run, for what is tracked while its pack trains; None: nothing is.
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

    @property
    def trajectory(self) -> str:
        """Runs with equal ones share a lane, each with a finish line of its own."""
        return packing.trajectory(packing.planned(self.config))


class Proposal(PlannedRun):
    """A run that a sweeper may ask for: it has no number yet."""

    @property
    def title(self) -> str:
        """What it would differ in, for messages."""
        return title(None, self.differs)


def title(number: int | None, differs: Sequence[str]) -> str:
    """How messages call a run, which is a job to Hydra; None: one that there may be."""
    if number is None:
        return " ".join(["a job with", *differs])
    return f"job {number} ({' '.join(differs)})" if differs else f"job {number}"


class Faults:
    """What is wrong with which runs of a sweep, each problem once.

    Args:
        total: how many runs there are.

    Attributes:
        everywhere: problems of the sweep itself.
    """

    def __init__(self, total: int) -> None:
        self.everywhere: list[str] = []
        self._total = total
        self._titles: dict[str, dict[str, None]] = {}

    def note(self, problems: Iterable[str], title: str) -> None:
        """Note what is wrong with a run."""
        for problem in problems:
            self._titles.setdefault(problem, {})[title] = None

    def of(self, title: str) -> list[str]:
        """What is known to be wrong with a run."""
        return [problem for problem, titles in self._titles.items() if title in titles]

    def raise_if_any(self) -> None:
        """Raise `ConfigError` with every problem, and whose it is; do nothing when there is none."""
        problems = Problems()
        problems.messages += self.everywhere
        for problem, titles in self._titles.items():
            whose = ", ".join(titles) if len(titles) <= _MOST_TITLES else listed([*titles], _MOST_TITLES)
            problems.messages.append(problem if len(titles) == self._total else f"{whose}: {problem}")
        problems.raise_if_any()


@dataclass(frozen=True)
class Plan:
    """What a sweep will do.

    Attributes:
        runs: in their order.
        packs: runs to train, gathered; the others have their LoRA in the store.
    """

    runs: tuple[PlannedRun, ...]
    packs: tuple[tuple[PlannedRun, ...], ...]

    @property
    def trained(self) -> tuple[PlannedRun, ...]:
        """Runs with nothing left to train."""
        waiting = {run.number for members in self.packs for run in members}
        return tuple(run for run in self.runs if run.number not in waiting)


def check(runs: Sequence[PlannedRun], faults: Faults | None = None, *, elsewhere: bool = False) -> None:
    """Look at every run before the first one starts: inputs first, then base models and metric backbones.

    Args:
        runs: of a sweep.
        faults: found before, to be told with those of the inputs.
        elsewhere: they will run on other machines, so that it does not matter which devices or compilers this one
            has.

    Raises:
        ConfigError: with every problem of every run, each problem once.
    """

    faults = faults or Faults(len(runs))

    def look(run: PlannedRun) -> None:
        train, sample = replace(run.config.train, compile="none"), replace(run.config.sample, compile="none")
        config = replace(run.config, train=train, sample=sample) if elsewhere else run.config
        prepare.check_inputs(config, faults.of(run.title))

    def load(run: PlannedRun) -> None:
        prepare.load(_on_cpu(run.config) if elsewhere else run.config, prepare.open_store(run.config))

    for apply in (look, load):
        for run in runs:
            try:
                apply(run)
            except ConfigError as error:
                faults.note(error.problems, run.title)
        faults.raise_if_any()


def plan(
    runs: Sequence[PlannedRun],
    size: int | None,
    *,
    workers: int = 1,
    elsewhere: bool = False,
    gpus: Sequence[Gpu] | None = None,
    fits: Callable[[Config], int | None] = lambda config: None,
) -> Plan:
    """Find out what is in the store, and gather the rest into packs.

    Args:
        runs: that passed `check`.
        size: most lanes of a pack; None: as many as are useful, but every worker gets something to do.
        workers: how many packs run at a time.
        elsewhere: they will run on other machines, whose precision only these know when it is `auto`.
        gpus: what processes of this machine have that will run them, so that this one must touch none; None: it runs
            them itself.
        fits: lanes of a run's kind that memory has room for, by an estimate; packs are measured again before they
            train.
    """
    seen = {run.number: looked_at(run.config, elsewhere, gpus) for run in runs}
    # a LoRA that is brought along needs no training either
    todo = [run for run in runs if run.config.lora.path is None and not _is_trained(seen[run.number])]
    interrupted = [] if elsewhere else _interrupted(todo, seen)
    if size is None:
        lanes = len({run.trajectory for run in todo})
        most = [memory.most_lanes(run.config.model.device) for run in todo[:1]]
        most += [fit for run in todo if (fit := fits(run.config)) is not None]
        size = max(1, min([-(-lanes // workers), *most]))
    resumed = {run.number for members in interrupted for run in members}
    fresh = [run for run in todo if run.number not in resumed]
    packs = [tuple(fresh[index] for index in pack) for pack in packing.packs([run.config for run in fresh], size)]
    return Plan(tuple(runs), (*interrupted, *packs))


def _interrupted(runs: Sequence[PlannedRun], seen: Mapping[int, Config | None]) -> list[tuple[PlannedRun, ...]]:
    """Packs that an interruption left half done: the same lanes must go on together (see `dbexp.train.resume`)."""
    packs = []
    stores = {run.config.store: prepare.open_store(run.config) for run in runs}
    for name, store in stores.items():
        if not (states := resume.begun(store)):
            continue
        members = [run for run in runs if run.config.store == name]
        entries = [_entry(seen[run.number], store) for run in members]
        packs += [tuple(members[index] for index in indices) for indices in resume.together(states, entries)]
    return packs


def _entry(config: Config | None, store: Store) -> str:
    """Where the store keeps a run's training, relative to its root; empty if that cannot be known yet."""
    if config is None:
        return ""
    model = models.load(config.model, store)
    training = prepare.find_training(config, model, store)
    if training is None:
        return ""
    return store.path("train", inputs_of(training, model)).relative_to(store.root).as_posix()


def looked_at(config: Config, elsewhere: bool, gpus: Sequence[Gpu] | None) -> Config | None:
    """The config by which this process finds in the store what others will make of a run: of their precision, and on a
    device that is none. None: that precision is not known here."""
    if not elsewhere and gpus is None:
        return config
    model, precision = config.model, config.model.precision
    if precision == "auto":
        precisions = {auto_precision(gpu.capability, FAMILIES[model.family].fp16)[0] for gpu in gpus or ()}
        if gpus is not None and (model.device == "cpu" or not gpus):
            precisions = {"fp32"}
        if len(precisions) != 1:  # other machines, or GPUs of two kinds
            return None
        (precision,) = precisions
    return replace(config, model=replace(model, device="meta", precision=precision))


def _is_trained(config: Config | None) -> bool:
    """Whether the store is known to have everything up to the LoRA."""
    if config is None:
        return False
    store = prepare.open_store(config)
    model = models.load(config.model, store)
    training = prepare.find_training(config, model, store)
    return training is not None and store.find("train", inputs_of(training, model)) is not None


def _on_cpu(config: Config) -> Config:
    """The same for a machine that may not have the run's device; nor is there nf4 without one."""
    quantize = None if config.model.quantize == "nf4" else config.model.quantize
    return replace(config, model=replace(config.model, device="cpu", quantize=quantize))


def show(plan: Plan, console: Console | None = None, *, costs: str | None = None) -> None:
    """Print a plan: a line per run.

    Args:
        plan: what to show.
        costs: what it takes, in a sentence.
        console: where to; None: standard error, so that standard output is the results' alone.
    """
    console = console or Console(stderr=True)
    trained, packs = len(plan.trained), count(len(plan.packs), "pack")
    grid = Table()
    for heading in ("job", "what differs", "training"):
        grid.add_column(heading, overflow="fold")
    pack_of = {run.number: pack for pack, members in enumerate(plan.packs, start=1) for run in members}
    for run in plan.runs:
        state = f"pack {pack_of[run.number]}" if run.number in pack_of else "in the store"
        state = state if run.config.lora.path is None else "none: lora.path"
        grid.add_row(str(run.number), Text(" ".join(run.differs)), state)
    brought = sum(run.config.lora.path is not None for run in plan.runs)
    training = f"{len(plan.runs) - trained} to train in {packs}, {trained - brought} in the store"
    training += f", {brought} with a LoRA of their own" if brought else ""
    print_grid(f"{len(plan.runs)} jobs: {training}", grid, console)
    if costs is not None:
        console.print(costs, highlight=False, markup=False, soft_wrap=not console.is_terminal)
