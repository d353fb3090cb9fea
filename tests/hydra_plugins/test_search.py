"""A search over a study: how many trials it asks for, what it does with interrupted ones, and whose study it is.

The launcher is a function of the overrides, so that nothing trains; the whole of it is in test_cluster_search.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from dbexp.config.groups import conf_dir
from dbexp.core.errors import ConfigError
from hydra_plugins.dbexp_search._settings import SearchSweeperConf
from tests.sweeps import dbexp_command, tiny

optuna = pytest.importorskip("optuna")
_search = pytest.importorskip("hydra_plugins.dbexp_search._search")
_study = pytest.importorskip("hydra_plugins.dbexp_search._study")

SPACE = ("lora.rank=range(4,17,4)", "train.lr=tag(log,interval(1e-5,1e-3))")
GRID = ("lora.rank=range(4,17,4)", "prior.weight=0.0,0.5,1.0")


@pytest.fixture(autouse=True)
def _locks() -> Iterator[None]:
    """What a process holds until it ends, here until the test does."""
    yield
    release()


def release() -> None:
    """As the end of the process would."""
    while _study._held:
        _study._held.pop().release()


class Launched:
    """Stands for a launcher: a job's value is its rank, less its learning rate.

    Attributes:
        jobs: (number, overrides) of each.
        dies_at: number of the job at whose batch the process is killed.
    """

    def __init__(self, value: Callable[[Sequence[str]], Any] | None = None, dies_at: int | None = None) -> None:
        self.jobs: list[tuple[int, tuple[str, ...]]] = []
        self.batches: list[int] = []
        self.dies_at, self._value = dies_at, value or self._of

    @staticmethod
    def _of(words: Sequence[str]) -> float:
        values = dict(word.split("=") for word in words)
        return float(values["lora.rank"]) - float(values.get("train.lr", values.get("prior.weight", 0)))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        numbered = [(initial_job_idx + place, tuple(words)) for place, words in enumerate(job_overrides)]
        if self.dies_at in [number for number, _ in numbered]:
            raise KeyboardInterrupt
        self.jobs += numbered
        self.batches.append(len(numbered))
        return [self._returned(words) for words in job_overrides]

    def _returned(self, words: Sequence[str]) -> JobReturn:
        value = self._value(words)
        returned = JobReturn(status=JobStatus.FAILED if isinstance(value, Exception) else JobStatus.COMPLETED)
        returned.return_value = value
        return returned


def sampler(name: str = "random") -> dict[str, Any]:
    text = (conf_dir() / "hydra" / "sweeper" / "sampler" / f"{name}.yaml").read_text()
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


def search(
    folder: Path,
    launched: Launched,
    *arguments: str,
    config: dict[str, Any] | None = None,
    objective: str = "dino",
    **changes: Any,
) -> list[Any]:
    """Search; the trials of the study afterwards."""
    settings: dict[str, Any] = {
        "study_name": "search",
        "storage": str(folder / "search.log"),
        "n_trials": 6,
        "n_jobs": 2,
    }
    settings |= {"sampler": sampler(), "max_failure_rate": 1.0} | changes
    composed = {"objective": objective, "train": {"steps": 30}, "store": "here", **(config or {})}
    cfg = OmegaConf.create({**composed, "hydra": {"sweep": {"dir": str(folder / "sweep")}}})
    loader: Any = SimpleNamespace(load_sweep_config=lambda config, words: config)
    with contextlib.suppress(KeyboardInterrupt):
        _search.search(SearchSweeperConf(**settings), cfg, loader, launched, arguments or SPACE)
    release()
    if settings["storage"] is None:
        return []
    return list(load(settings["storage"]).trials)


def load(storage: str | Path) -> Any:
    """The study in a storage."""
    return optuna.load_study(study_name="search", storage=_study.place(str(storage)))


def states(trials: Sequence[Any]) -> list[str]:
    return [trial.state.name for trial in trials]


def test_as_many_trials_as_were_asked_for_in_all(tmp_path: Path) -> None:
    first = Launched()
    assert states(search(tmp_path, first, n_trials=3)) == ["COMPLETE"] * 3
    assert [number for number, _ in first.jobs] == [0, 1, 2]
    again, more = Launched(), Launched()
    search(tmp_path, again, n_trials=3)
    assert not again.jobs
    assert states(search(tmp_path, more, n_trials=5)) == ["COMPLETE"] * 5
    assert [number for number, _ in more.jobs] == [3, 4]


@pytest.mark.parametrize("name", ["tpe", "random", "cmaes", "nsgaii", "gp", "qmc", "grid"])
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_search_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path, name: str) -> None:
    if name == "cmaes":
        pytest.importorskip("cmaes")
    space = GRID if name == "grid" else SPACE
    (tmp_path / "cut").mkdir()
    whole, before, after = Launched(), Launched(dies_at=3), Launched()
    search(tmp_path, whole, *space, sampler=sampler(name))
    cut = search(tmp_path / "cut", before, *space, sampler=sampler(name))
    assert states(cut) == ["COMPLETE"] * 2 + ["RUNNING"] * 2
    assert states(search(tmp_path / "cut", after, *space, sampler=sampler(name))) == ["COMPLETE"] * 6
    assert before.jobs + after.jobs == whole.jobs
    assert after.batches == [2, 2]


def test_a_batch_that_was_cut_off_while_it_was_asked_for_is_filled_up(tmp_path: Path) -> None:
    whole, after = Launched(), Launched()
    (tmp_path / "cut").mkdir()
    search(tmp_path, whole)
    # the process ended when of the first batch one trial was asked for, and of the second trial no parameters yet
    search(tmp_path / "cut", Launched(dies_at=0), n_jobs=1)
    load(tmp_path / "cut" / "search.log").ask()
    trials = search(tmp_path / "cut", after)
    assert states(trials) == ["COMPLETE", "FAIL", *["COMPLETE"] * 5]
    assert after.jobs == whole.jobs and after.batches == whole.batches


def test_a_grid_has_every_point_once_and_ends(tmp_path: Path) -> None:
    launched = Launched()
    trials = search(tmp_path, launched, *GRID, sampler=sampler("grid"), n_trials=50, n_jobs=5)
    assert len(trials) == 12 and len({words for _, words in launched.jobs}) == 12
    again = Launched()
    search(tmp_path, again, *GRID, sampler=sampler("grid"), n_trials=50, n_jobs=5)
    assert not again.jobs


def test_a_database_keeps_a_study_as_well(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    search(tmp_path, Launched(dies_at=2), storage=storage)
    after = Launched()
    assert states(search(tmp_path, after, storage=storage)) == ["COMPLETE"] * 6
    assert [number for number, _ in after.jobs] == [2, 3, 4, 5]


def test_without_storage_a_search_is_of_its_process(tmp_path: Path) -> None:
    launched = Launched()
    search(tmp_path, launched, storage=None, study_name=None)
    assert len(launched.jobs) == 6


def test_trials_of_another_process_are_left_alone(tmp_path: Path) -> None:
    search(tmp_path, Launched(dies_at=2))
    launched = Launched()
    with FileLock(tmp_path / "search.log.search.lock"):
        trials = search(tmp_path, launched)
    assert states(trials) == ["COMPLETE"] * 2 + ["RUNNING"] * 2 + ["COMPLETE"] * 2
    assert [number for number, _ in launched.jobs] == [0, 1], "each process counts its own jobs"


def test_a_lock_says_that_another_process_works_on_a_study(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'search.db'}"
    with FileLock(tmp_path / "search.db.search.lock"):
        assert not _study._hold("search", storage)
        assert _study._hold("another", storage)
    assert _study._hold("search", storage)
    assert not _study._hold("search", "postgresql://host/db")


# -- what is told ------------------------------------------------------------------------------------------------------


def test_what_a_job_returned_is_told(tmp_path: Path) -> None:
    values: list[Any] = [0.5, float("nan"), None, ValueError("diverged"), 0.25, 0.75]
    trials = search(tmp_path, Launched(lambda words: values.pop(0)))
    assert states(trials) == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "COMPLETE", "COMPLETE"]
    assert yaml.safe_load((tmp_path / "sweep" / _search.RESULTS).read_text()) == {
        "name": "optuna",
        "best_params": trials[5].params,
        "best_value": 0.75,
    }


def test_several_objectives_have_several_best_trials(tmp_path: Path) -> None:
    values = [(0.1, 0.9), (0.9, 0.1), (0.05, 0.05), (0.5, 0.5), None, (0.4, 0.4)]
    trials = search(tmp_path, Launched(lambda words: values.pop(0)), objective="dino+clip_t")
    written = yaml.safe_load((tmp_path / "sweep" / _search.RESULTS).read_text())
    assert written["solutions"] == [
        {"params": trials[number].params, "values": trials[number].values} for number in (0, 1, 3)
    ]


def test_too_many_failures_end_a_search_and_lose_nothing(tmp_path: Path) -> None:
    values: list[Any] = [0.5, 0.25, 0.1, ValueError("diverged")]
    with pytest.raises(ValueError, match="diverged"):
        search(tmp_path, Launched(lambda words: values.pop(0)), max_failure_rate=0.4)
    assert yaml.safe_load((tmp_path / "sweep" / _search.RESULTS).read_text())["best_value"] == 0.5
    assert states(load(tmp_path / "search.log").trials) == ["COMPLETE"] * 3 + ["FAIL"]


# -- whose study it is -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "changes", "says"),
    [
        (SPACE, {"config": {"train": {"steps": 60}}}, "train.steps was 30 and is 60"),
        (("lora.rank=range(4,17,4)", "train.lr=1e-4"), {}, "train.lr was searched and is fixed"),
        ((*SPACE, "seed=1,2"), {}, "seed was fixed and is searched"),
        (("lora.rank=4,8", SPACE[1]), {}, "lora.rank had the choices of an interval and has 4,8"),
        (SPACE, {"objective": "clip_t"}, r"objective was \['dino'\] and is \['clip_t'\]"),
        (SPACE, {"objective": "pres"}, "direction was maximize and is minimize"),
    ],
)
def test_another_experiment_needs_another_study(
    tmp_path: Path, arguments: Sequence[str], changes: dict[str, Any], says: str
) -> None:
    search(tmp_path, Launched(), n_trials=1)
    other = Launched()
    with pytest.raises(
        ConfigError, match=rf"hydra.sweeper.study_name=search: .*{says}.*hydra.sweeper.study_name=NAME begins"
    ):
        search(tmp_path, other, *arguments, **changes)
    assert not other.jobs
    search(tmp_path, other, *arguments, **changes, study_name="other", n_trials=1)
    assert len(other.jobs) == 1


def test_what_does_not_change_a_value_may_change(tmp_path: Path) -> None:
    before = {"sample": {"batch_size": 8}, "tracking": {"mode": "offline"}}
    after = {"sample": {"batch_size": 2}, "tracking": {"mode": "online"}, "store": "elsewhere"}
    search(tmp_path, Launched(), n_trials=1, config=before)
    wider = Launched()
    search(tmp_path, wider, "lora.rank=range(4,33,4)", SPACE[1], n_trials=3, config=after, sampler=sampler("tpe"))
    assert len(wider.jobs) == 2


def test_a_parameter_that_came_with_a_newer_version_had_its_default_before(tmp_path: Path) -> None:
    search(tmp_path, Launched(), n_trials=1)
    defaults, other = {"train": {"steps": 30, "grad_accum": 1}}, {"train": {"steps": 30, "grad_accum": 2}}
    search(tmp_path, Launched(), n_trials=2, config=defaults)
    with pytest.raises(ConfigError, match=r"train.grad_accum was 1 and is 2"):
        search(tmp_path, Launched(), n_trials=3, config=other)


def test_a_study_without_results_begins_anew(tmp_path: Path) -> None:
    search(tmp_path, Launched(dies_at=0))
    launched = Launched()
    trials = search(tmp_path, launched, config={"train": {"steps": 60}}, objective="pres", n_trials=2)
    assert states(trials) == ["COMPLETE"] * 2 and len(launched.jobs) == 2


def test_a_study_of_another_program_is_refused(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="search", storage=_study.place(str(tmp_path / "search.log")))
    study.tell(study.ask(), 1.0)
    with pytest.raises(ConfigError, match="it was begun by another program"):
        search(tmp_path, Launched())


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "direction", "says"),
    [
        ("dino", None, None),
        ("dino", "maximize", None),
        ("dino,pres", None, None),
        ("dino+pres", ["maximize", "minimize"], None),
        ("pres", "maximize", "say hydra.sweeper.direction=minimize"),
        ("dino", ["maximize", "maximize"], "say hydra.sweeper.direction=maximize"),
        ("dino,pres", ["maximize", "maximize"], r"say hydra.sweeper.direction=\[maximize,minimize\]"),
        ("recommend", "maximize", None),
        ("dino-pres,div", ["maximize", "minimize"], r"say hydra.sweeper.direction=\[maximize,maximize\]"),
        ("nonsense", None, "objective=nonsense: "),
    ],
)
def test_directions_are_those_in_which_columns_get_better(objective: str, direction: Any, says: str | None) -> None:
    settings, config = SearchSweeperConf(direction=direction), OmegaConf.create({"objective": objective})
    if says is None:
        better = ["minimize" if name == "pres" else "maximize" for name in objective.replace("+", ",").split(",")]
        assert _search.directions_of(settings, config) == better
        return
    with pytest.raises(ConfigError, match=says):
        _search.directions_of(settings, config)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sampler": {"_target_": "os.system"}}, "hydra.sweeper.sampler._target_=os.system: is no class of optuna"),
        ({"sampler": {"_target_": "optuna.samplers.TPESampler", "sead": 1}}, "hydra.sweeper.sampler: .*sead"),
        (
            {"storage": "sqlite:////no/such/folder/x.db"},
            "storage=sqlite:////no/such/folder/x.db: .*write",
        ),
        ({"sampler": {"_target_": "optuna.samplers.GridSampler"}}, "train.lr: an interval has no finite number"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    launched = Launched()
    with pytest.raises(ConfigError, match=says):
        search(tmp_path, launched, **changes)
    assert not launched.jobs


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["lora.rank=choice(4,8,0)"], "a job with rank=0: lora.rank=0: must be at least 1"),
        (["train.lr=interval(-1,1e-3)"], "a job with lr=-1.0: train.lr=-1.0: must be greater than 0"),
        (["sample.steps=choice(2,5000)", "hydra/launcher=basic"], "a job with steps=5000: sample.steps=5000: must be"),
        (["lora.rank=choice(4,8)", "dataset.path=nowhere"], "dataset.path=nowhere: there is no folder"),
        (["lora.rank=choice(4,8)", "hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: may be one folder for several jobs"),
    ],
)
def test_a_search_of_what_cannot_be_begins_no_study(tmp_path: Path, words: list[str], says: str) -> None:
    earlier = tmp_path / "sweep" / "optimization_results.yaml"
    earlier.parent.mkdir()
    earlier.write_text("of a good search")
    study = ["hydra/sweeper=optuna", "hydra.sweeper.storage='sqlite:///search.db'", "hydra.sweeper.study_name=s"]
    outcome = dbexp_command(tmp_path, "-m", "hydra.sweep.dir=sweep", *study, *tiny(tmp_path / "store"), *words)
    assert outcome.status == 1 and says in outcome.err and "Traceback" not in outcome.err, outcome.err
    assert earlier.read_text() == "of a good search" and list(earlier.parent.iterdir()) == [earlier]
    assert {path.name for path in tmp_path.iterdir()} <= {"sweep", "store"}


@pytest.mark.parametrize(("missing", "option"), [("optuna", "sweeper=search"), ("cmaes", "sweeper/sampler=cmaes")])
def test_without_its_package_a_search_says_which_extra_it_needs(
    missing: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else found(name, *more)
    )
    words = ["hydra/sweeper=search", *([] if "=search" in option else [f"hydra/{option}"])]
    outcome = dbexp_command(tmp_path, "-m", *words, "objective=dino")
    assert outcome.status == 1
    assert f"dbexp: hydra/{option}: needs the package {missing}; pip install '.[optuna]'" in outcome.err
    assert "Traceback" not in outcome.err
