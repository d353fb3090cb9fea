"""A search: ask Optuna for a batch of trials, have it run as a pack, tell what came of it, until there are enough.

Optuna's public ask-and-tell only. What is asked for is a function of the study, of the seed and of how many trials
there were before: a search that was killed goes on as if it had not been. A trial that was interrupted is still
running, to the study; its run is started again with the parameters that it has.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from dbexp.config.values import flatten, objectives
from dbexp.core.errors import ConfigError, first_line, needs
from dbexp.core.hashing import seed_of
from dbexp.evaluate.columns import column_of, is_column, terms
from dbexp.evaluate.objective import problem
from dbexp.runs.names import matters
from hydra_plugins.dbexp_search import _space, _study
from hydra_plugins.dbexp_search._settings import SearchSweeperConf
from hydra_plugins.dbexp_search._space import Params, Space
from hydra_plugins.dbexp_search._study import OpenStudy

log = logging.getLogger(__name__)

RESULTS = "optimization_results.yaml"
_GRID = "optuna.samplers.GridSampler"
_SEQUENCES = ("QMCSampler",)
"""Samplers that go through one sequence, which the seed chooses."""
_NO_MATTER = (
    *("model.device", "train.log_every", "train.checkpoint_every", "train.gradient_checkpointing", "train.graphs"),
    *("prior.batch_size", "sample.batch_size", "evaluate.batch_size"),
)
"""Settings that change what a run costs, or where it runs, and not what comes of it."""


def search(
    settings: SearchSweeperConf, config: DictConfig, loader: ConfigLoader, launcher: Launcher, arguments: Sequence[str]
) -> None:
    """Bring a study to its number of trials, and write what it found.

    Args:
        settings: of the sweeper.
        config: of the sweep, with its `hydra` node.
        loader: composes a job's config.
        launcher: runs a batch.
        arguments: overrides of the command line.

    Raises:
        ConfigError: the settings are wrong, or the study is another experiment's.
        Exception: of the first job of a batch of which too many failed.
    """
    space = _space.read(settings.params or {}, arguments, loader)
    directions = directions_of(settings, config)
    proposals = _Proposals.of(settings, space)
    fixed = fixed_settings(loader.load_sweep_config(config, list(space.fixed)), space)
    study = _study.open_study(settings.study_name, settings.storage, directions, space, fixed)
    work = _Search(settings, study, launcher, proposals)
    folder = Path(str(config.hydra.sweep.dir))
    work.say_where()
    try:
        while batch := work.next_batch():
            work.run(batch)
    finally:  # also of a search that is given up
        _write(study.study, folder)


def directions_of(settings: SearchSweeperConf, config: DictConfig) -> list[str]:
    """minimize or maximize, of each objective: those in which columns get better.

    Raises:
        ConfigError: other ones were asked for.
    """
    names = objectives(config.objective)
    # whether a config adds the columns of another backbone, its check says
    known = tuple(each for name in names for each in (name, *terms(name)) if is_column(each))
    if problems := [text for name in names if (text := problem(name, known))]:
        raise ConfigError(problems)
    better = ["minimize" if column_of(name).better == "lower" else "maximize" for name in names]
    listed = settings.direction if isinstance(settings.direction, list) else [settings.direction]
    chosen = better if settings.direction is None else [str(direction) for direction in listed]
    if chosen == better:
        return better
    advice = better[0] if len(better) == 1 else f"[{','.join(better)}]"
    raise ConfigError(
        f"hydra.sweeper.direction={','.join(chosen)}: does not suit objective={'+'.join(names)}; "
        f"say hydra.sweeper.direction={advice}, or leave it out"
    )


def fixed_settings(composed: DictConfig, space: Space) -> dict[str, Any]:
    """Parameter -> value of all that is the same in every trial, and says what an objective's value is a value of.

    Args:
        composed: config of a job with nothing but what is fixed.
        space: what is searched.
    """
    names = [str(name) for name in composed if name != "hydra"]
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, names), resolve=True, enum_to_str=True)
    plain["objective"] = objectives(plain.get("objective"))
    searched = {name.lstrip("+").partition("@")[0].replace("/", ".") for name in space.searched}
    return {
        name: value
        for name, value in flatten(plain).items()
        if (matters(name) or name == "objective")
        and name not in _NO_MATTER
        and not any(name == other or name.startswith(f"{other}.") for other in searched)
    }


@dataclass(frozen=True)
class _Proposals:
    """Who says which parameters a trial has.

    Attributes:
        settings: of the sampler.
        points: all that there are, where each is to be tried once; None: the sampler proposes.
    """

    settings: Mapping[str, Any]
    points: Sequence[Params] | None

    @classmethod
    def of(cls, settings: SearchSweeperConf, space: Space) -> _Proposals:
        """Those of a search; checked, before a study is begun."""
        sampler = dict(settings.sampler)
        target = str(sampler.get("_target_", ""))
        if target == _GRID:
            points = space.points()
            random.Random(sampler.get("seed")).shuffle(points)  # the first ones of many speak of all of the grid
            return cls(sampler, points)
        if target.removeprefix("optuna.samplers.") not in optuna.samplers.__all__:
            raise ConfigError(
                f"hydra.sweeper.sampler._target_={target or 'null'}: is no class of optuna.samplers; choose an option, "
                "as in hydra/sweeper/sampler=tpe"
            )
        proposals = cls(sampler, None)
        proposals.sampler(0)
        return proposals

    def sampler(self, before: int) -> BaseSampler:
        """Optuna's sampler for a trial: made anew, so that no state is lost with a process.

        Args:
            before: how many trials the study has.
        """
        if self.points is not None:
            return RandomSampler()  # is asked nothing: GridSampler loses the point of a trial that is cut off early
        settings = dict(self.settings)
        name = str(settings.pop("_target_")).removeprefix("optuna.samplers.")
        if name == "CmaEsSampler" and importlib.util.find_spec("cmaes") is None:
            raise ConfigError(
                f"hydra/sweeper/sampler=cmaes: {needs('cmaes', 'optuna')}"
            )  # else the first trial says it
        seed = settings.get("seed")
        if seed is not None and name not in _SEQUENCES:
            settings["seed"] = seed_of(int(seed), "search", before) % 2**32
        try:
            sampler: BaseSampler = getattr(optuna.samplers, name)(**settings)
        except Exception as error:  # an argument that the class does not have
            raise ConfigError(f"hydra.sweeper.sampler: {first_line(error)}") from error
        return sampler

    def next_point(self, trials: Iterable[FrozenTrial]) -> Params | None:
        """The first point that was not tried; None if there is none."""
        tried = [trial.params for trial in trials]
        return next((point for point in self.points or () if point not in tried), None)


class _Search:
    """A search in progress."""

    def __init__(self, settings: SearchSweeperConf, study: OpenStudy, launcher: Launcher, proposals: _Proposals):
        self._settings, self._study, self._launcher, self._proposals = settings, study, launcher, proposals
        points = proposals.points
        self._total = settings.n_trials if points is None else min(settings.n_trials, len(points))
        self._interrupted = study.interrupted()
        self._launched = 0

    def say_where(self) -> None:
        """Log what is there of the study."""
        finished = sum(trial.state.is_finished() for trial in self._study.trials())
        name, total, more = self._study.study.study_name, self._total, self._settings.n_jobs
        if not finished and not self._interrupted:
            log.info("study %s: %d trials, %d at a time", name, total, more)
            return
        log.info(
            "study %s: %d of %d trials are there, %d of the others were interrupted",
            *(name, finished, total, len(self._interrupted)),
        )
        if finished >= total and self._proposals.points is None:
            log.info(
                "nothing is left to ask for; hydra.sweeper.n_trials=%d would ask for %d more", finished + more, more
            )

    def next_batch(self) -> list[FrozenTrial]:
        """Trials that run next: those that were interrupted, and then as many more as a batch has room for.

        A batch that was cut off while it was asked for is filled up to what it would have been.
        """
        trials = self._study.trials()
        batch, self._interrupted = self._interrupted, []
        size = self._settings.n_jobs
        begun = len(trials) % size if self._study.alone else 0
        wanted = 0 if batch and not begun else size - begun
        for number in range(len(trials), min(len(trials) + wanted, self._total)):
            batch.append(self._ask(number))
        return batch

    def _ask(self, before: int) -> FrozenTrial:
        """A new trial with its parameters."""
        study = self._study.study
        study.sampler = self._proposals.sampler(before)
        if self._proposals.points is not None and not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            point = self._proposals.next_point(self._study.trials())
            assert point is not None
            study.enqueue_trial(point)
        try:
            number = study.ask(dict(self._study.space.searched)).number
        except ValueError as error:  # a sampler that takes one objective only
            raise ConfigError(f"hydra.sweeper.sampler: {first_line(error)}") from error
        return study.get_trials(deepcopy=False)[number]

    def run(self, batch: Sequence[FrozenTrial]) -> None:
        """Launch a batch, and tell the study what became of each trial.

        Raises:
            Exception: of the first job that failed, if too many did.
        """
        returns = [returned for group in self._groups(batch) for returned in self._launch(*group)]
        failed = [self._tell(trial, returned) for trial, returned in zip(batch, returns, strict=True)].count(False)
        if failed > self._settings.max_failure_rate * len(batch):
            for returned in returns:
                _ = returned.return_value  # raises what the job raised

    def _groups(self, batch: Sequence[FrozenTrial]) -> list[tuple[int, list[FrozenTrial]]]:
        """(number of the first job, trials): a launcher counts jobs on from there.

        A trial's job has its place in the study for its number, so that a search that goes on in the same folder finds
        there what it left. Of two processes that share a study each counts its own.
        """
        if not self._study.alone:
            self._launched += len(batch)
            return [(self._launched - len(batch), list(batch))]
        places = {trial.number: place for place, trial in enumerate(self._study.trials())}
        groups: list[tuple[int, list[FrozenTrial]]] = []
        for trial in batch:
            place = places[trial.number]
            if not groups or place != groups[-1][0] + len(groups[-1][1]):
                groups.append((place, []))
            groups[-1][1].append(trial)
        return groups

    def _launch(self, first: int, trials: Sequence[FrozenTrial]) -> Sequence[JobReturn]:
        words = [self._study.space.words(trial.params) for trial in trials]
        return self._launcher.launch(words, initial_job_idx=first)

    def _tell(self, trial: FrozenTrial, returned: JobReturn) -> bool:
        """Tell the study what a job returned; whether it did not fail.

        A run that was stopped early returns nothing. To the study it is pruned, and worse than those that were not.
        """
        study = self._study.study
        if returned.status is not JobStatus.COMPLETED:
            study.tell(trial.number, state=TrialState.FAIL)
            return False
        value = returned.return_value
        if value is None:
            study.tell(trial.number, state=TrialState.PRUNED)
            return True
        values = [float(number) for number in (value if isinstance(value, (list, tuple)) else [value])]
        if any(math.isnan(number) for number in values):
            log.warning("trial %d: its objective is not a number: %s", trial.number, values)
            study.tell(trial.number, state=TrialState.FAIL)
            return False
        study.tell(trial.number, values)
        return True


def _write(study: optuna.Study, folder: Path) -> None:
    """Write the best trial, or those of which none is better in everything, into the sweep's folder."""
    best = [trial for trial in study.best_trials if trial.values]
    found: dict[str, Any] = {"name": "optuna"}
    if len(study.directions) == 1:
        found |= {"best_params": best[0].params, "best_value": best[0].value} if best else {}
    else:
        found["solutions"] = [{"params": trial.params, "values": list(trial.values)} for trial in best]
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(found), folder / RESULTS)
