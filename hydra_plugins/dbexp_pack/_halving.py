"""Halving: who stops at a rung, which a pruner of Optuna decides, and what a run that was stopped leaves."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dbexp.core.errors import needs
from dbexp.evaluate.columns import RECOMMEND
from hydra_plugins.dbexp_pack._settings import HalvingConf, PackLauncherConf

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

    from dbexp.pipeline.halving import Judging, Race, Reach, Stop
    from dbexp.pipeline.plan import Plan

log = logging.getLogger(__name__)

PRUNERS = ("successive", "hyperband", "median")


def problems(settings: PackLauncherConf) -> list[str]:
    """What is wrong with the settings of halving; nothing where there is none."""
    from dbexp.pipeline import halving

    cfg = settings.halving
    if not cfg.rungs:
        return []
    messages = halving.problems(cfg.rungs, judging(cfg))
    if cfg.pruner not in PRUNERS:
        messages.append(f"hydra.launcher.halving.pruner={cfg.pruner}: choose one of {', '.join(PRUNERS)}")
    if cfg.factor < 2:
        messages.append(f"hydra.launcher.halving.factor={cfg.factor}: must be at least 2")
    if importlib.util.find_spec("optuna") is None:
        messages.append(f"hydra.launcher.halving: {needs('optuna', 'optuna')}")
    return messages


_NO_JUDGE = {
    "draw": "hydra.launcher.halving.judge=draw: judges by objective=recommend, which at early steps is low for runs "
    "that end best: on the reference sweep it kept the best run 1 time of 3, for 46 to 60 % of the cost of training; "
    "the loss kept the best run by DINO 3 times of 3, for 31 % (benchmarks/2026-11-28_halving_reference.md). Say "
    "hydra.launcher.halving.judge=loss with objective=dino, or let no rung come early",
    "loss": "hydra.launcher.halving.judge=loss: looks for the subject alone, and objective=recommend asks for the "
    "prompt and the class as well: three searches that raced ended at places 6, 9 and 19 of 24 by the recommendation, "
    "and at places 1, 1 and 2 by DINO (benchmarks/2026-11-28_search.md). Say objective=dino, or "
    "hydra.launcher.halving.rungs=[]",
}
"""Judge -> why it finds no recommended setting."""


def advise(settings: PackLauncherConf, planned: Plan) -> None:
    """Warn of a judge that was measured and found to stop the best runs."""
    cfg, objective = settings.halving, planned.runs[0].config.objective[0]
    if cfg.rungs and objective == RECOMMEND:
        log.warning(_NO_JUDGE[cfg.judge])


def race(settings: PackLauncherConf, planned: Plan, folder: Path, reach: Reach) -> Race:
    """Have the runs of a plan race, and note in the sweep's folder how it went.

    Args:
        settings: of the launcher.
        planned: whose runs race.
        folder: of the sweep.
        reach: brings runs to a rung.

    Raises:
        Interrupted: a signal came; everything is saved.
    """
    from dbexp.pipeline import halving
    from dbexp.runs import race as race_files

    cfg = settings.halving
    how = judging(cfg)
    direction = how.direction(planned.runs[0].config)

    def decide(values: Mapping[int, Sequence[float]], place: int) -> set[int]:
        return stopped(values, place, cfg, direction)

    result = halving.race(planned.runs, cfg.rungs, how, decide, reach)
    race_files.write(result.plain(), folder)
    return result


def judging(cfg: HalvingConf) -> Judging:
    """How runs are judged."""
    from dbexp.pipeline.halving import Judging

    return Judging(cfg.judge, cfg.prompts, cfg.images, cfg.steps)


def stopped(values: Mapping[int, Sequence[float]], place: int, cfg: HalvingConf, direction: str) -> set[int]:
    """The runs that a pruner stops at a rung.

    A pruner decides as trials come, and the first one knows of no other. So every run is judged in a study of its own,
    in memory, in which all the others have reported before it: a decision does not depend on who came first.

    Args:
        values: number of a run -> its values at the rungs that it was judged at.
        place: of the rung, from 0.
        cfg: names the pruner.
        direction: minimize or maximize.
    """
    return {
        number for number, of in values.items() if len(of) == place + 1 and _is_stopped(number, values, cfg, direction)
    }


def _is_stopped(number: int, values: Mapping[int, Sequence[float]], cfg: HalvingConf, direction: str) -> bool:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Hyperband gives a trial its bracket by the name of the study and by its number
    study = optuna.create_study(
        study_name="halving", direction=optuna.study.StudyDirection[direction.upper()], pruner=_pruner(cfg)
    )
    trials = {other: study.ask() for other in sorted(values)}

    def report(other: int) -> bool:
        pruned = False
        for place, value in enumerate(values[other]):
            trials[other].report(value, cfg.factor**place)
            pruned = trials[other].should_prune()
        return pruned

    for other in trials:
        if other != number:
            report(other)
            study.tell(trials[other], values[other][-1])
    return report(number)


def _pruner(cfg: HalvingConf) -> BasePruner:
    """Optuna's. Rungs are numbered by powers of the factor, at which it looks, whatever steps they stand for."""
    from optuna import pruners

    if cfg.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=1)
    if cfg.pruner == "hyperband":
        most = cfg.factor ** len(cfg.rungs)
        return pruners.HyperbandPruner(min_resource=1, max_resource=most, reduction_factor=cfg.factor)
    return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=cfg.factor)


@dataclass(frozen=True)
class Leave:
    """The task of a job whose run was stopped: to say so. It returns nothing, which a search takes for pruned.

    Attributes:
        stops: number of a job -> where it was stopped.
    """

    stops: Mapping[int, Stop]

    def __call__(self, cfg: DictConfig) -> Any:
        """One job."""
        from dbexp.config import check
        from dbexp.pipeline import halving

        hydra = HydraConfig.get()
        stop = self.stops[int(hydra.job.num)]
        halving.leave(check.check(cfg), Path(hydra.runtime.output_dir), list(hydra.overrides.task), stop)
