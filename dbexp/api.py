"""dbexp in Python: compose, run, read results. What the command line does, by the same functions."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dbexp.config import check
from dbexp.config import compose as composing
from dbexp.config.explain import explain
from dbexp.config.schema import Config
from dbexp.config.values import plain
from dbexp.core import folders
from dbexp.core.errors import ConfigError, needs
from dbexp.core.hashing import key_of

if TYPE_CHECKING:
    import pandas

    from dbexp.compare.recommendation import Recommendation
    from dbexp.runs.record import Run

_overrides: dict[str, list[str]] = {}
"""Key of a config -> the overrides that it was composed from, which name a run."""


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> Config:
    """The checked config of some overrides.

    Args:
        overrides: as on the command line, one a string: "model=sd15", "lora.rank=32".
        config_dir: a folder of options of your own, as --config-dir.

    Returns:
        Plain dataclasses without interpolations. What is changed by `dataclasses.replace` afterwards is checked again
        by `run`.

    Raises:
        ConfigError: with every problem.
    """
    words = [str(word) for word in overrides]
    options = Path(config_dir).expanduser().absolute() if config_dir is not None else None
    if options is not None and not options.is_dir():
        raise ConfigError(f"config_dir={config_dir}: there is no such folder")
    config = composing.compose(words, options)
    _overrides[key_of(plain(config))] = words
    return config


def run(cfg: Config | DictConfig | Sequence[str], folder: str | Path | None = None) -> Run:
    """One run, from pictures to metrics; what was computed before is found in the store.

    Args:
        cfg: what `compose` gave, or overrides to compose.
        folder: of the run; None: outputs/DATE/TIME. Runs in FOLDER/0, FOLDER/1 and so on make a sweep for
            `load_results(FOLDER)` and dbexp-compare.

    Returns:
        The run as its folder tells it: `folder`, `report` with every metric, `config`.

    Raises:
        ConfigError: what is wrong with the config, all at once.
        TrainingDiverged, Interrupted: see `dbexp.train.train`.
    """
    config = check.check(cfg if isinstance(cfg, (Config, DictConfig)) else compose(cfg))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see dbexp.pipeline.command
    import dbexp.pipeline.run  # torch and diffusers: seconds
    from dbexp.runs import record
    from dbexp.runs.folder import RunFolder

    path = Path(folder or Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}").expanduser()
    overrides = _overrides.get(key_of(plain(config)), [])
    dbexp.pipeline.run.ready(config)
    try:
        path = path if folder else folders.fresh(path)
        files = RunFolder(path)
        files.hydra.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(config), files.composed)
        OmegaConf.save(OmegaConf.create(overrides), files.overrides)
    except OSError as error:
        raise ConfigError(f"folder={path}: {error.strerror}; choose another place") from None
    dbexp.pipeline.run.run(config, path, overrides)
    return record.read(path)


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended, as its folder tells it.

    Attributes:
        folder: of the sweep, with results.csv, effects.csv, pictures.csv and report.html.
        runs: in the order of their numbers, those that failed too: `status`, `report`, `error`.
    """

    folder: Path
    runs: tuple[Run, ...]

    @property
    def results(self) -> pandas.DataFrame:
        """A row per run, best first: see `load_results`."""
        return load_results(self.folder)

    @property
    def effects(self) -> pandas.DataFrame:
        """A row per difference that the page speaks of: see `load_effects`."""
        return load_effects(self.folder)

    @property
    def recommendation(self) -> pandas.DataFrame:
        """A row per run with all that its score is computed from: see `load_recommendation`."""
        return load_recommendation(self.folder)

    @property
    def statements(self) -> tuple[str, ...]:
        """What the runs support, in sentences: the best, what each parameter changes, what is chance."""
        from dbexp.compare.gather import compare
        from dbexp.compare.statements import statements

        return tuple(statement.sentence for statement in statements(compare([self.folder])))

    @property
    def page(self) -> Path:
        """The page to open in a browser."""
        from dbexp.compare.page.page import PAGE

        return self.folder / PAGE

    def _repr_html_(self) -> str:
        """The table and the sentences, where a notebook shows the sweep."""
        sentences = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in self.statements)
        return f"{sentences}{self.results.to_html(index=False, na_rep='')}<p>{html.escape(str(self.page))}</p>"


def sweep(
    overrides: Sequence[str] = (), folder: str | Path | None = None, config_dir: str | Path | None = None
) -> Sweep:
    """What `dbexp -m` does: every combination of comma-separated values, trained together in packs.

    Args:
        overrides: as on the command line, one a string: "lora.rank=4,16", "seed=1,2,3".
        folder: of the sweep; None: multirun/DATE/TIME. A folder of an earlier call goes on where that ended.
        config_dir: a folder of options of your own, as --config-dir.

    Returns:
        The sweep; a run that failed is one of its `runs`, and stops no other.

    Raises:
        ConfigError: what is wrong with the runs, all at once, before anything is computed.
        Interrupted: by Ctrl-C; the same call goes on.
    """
    from dbexp.pipeline import command
    from dbexp.runs import record

    path = Path(folder or folders.fresh(Path("multirun") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}")).expanduser()
    place = str(path).replace("\\", "\\\\").replace("'", "\\'")  # as Hydra's grammar has it between quotes
    words = ["-m", *(["--config-dir", str(config_dir)] if config_dir else []), f"hydra.sweep.dir='{place}'"]
    try:
        command.start([*words, *(str(word) for word in overrides)])
    except (HydraException, OmegaConfBaseException) as error:
        if not path.is_dir() or not record.scan(path):  # no run of it has begun; one that failed has said so itself
            raise ConfigError(explain(error)) from None
    except SystemExit as end:  # Hydra's callbacks let nothing else through, see `command.refusing`
        if not isinstance(end.code, str):
            raise
        raise ConfigError(end.code.removeprefix("dbexp: ")) from None
    return Sweep(path, tuple(record.scan(path)))


def load_effects(sweep: str | Path) -> pandas.DataFrame:
    """What each step of a parameter changes: the numbers of a sweep's effects.csv.

    Args:
        sweep: folder of the sweep.

    Returns:
        A row per difference: `parameter`, `from`, `to`, `where`, `metric`, `value`, `low`, `high`, `significant`,
        `speaks_of` and more; see docs/intervals.md.

    Raises:
        ConfigError: pandas is not installed, or the folder holds no run.
    """
    _pandas()
    from dbexp.compare.effects_table import effects_csv
    from dbexp.compare.gather import compare

    return _table(effects_csv(compare([Path(sweep).expanduser()])))


def load_recommendation(sweep: str | Path) -> pandas.DataFrame:
    """Which setting to take, and from what that follows: the numbers of a sweep's recommendation.csv.

    Args:
        sweep: folder of the sweep.

    Returns:
        A row per finished run: `job`, the parameters that differ, its columns and those of base and real images, the
        shares of subject, prompt and class, `recommend`, and whether its setting is `recommended`, `not_told_apart`,
        on the `front`, its `knee`; see docs/recommendation.md.

    Raises:
        ConfigError: pandas is not installed, or the folder holds no run.
    """
    _pandas()
    from dbexp.compare.gather import compare
    from dbexp.compare.recommendation import recommendation_csv

    comparison = compare([Path(sweep).expanduser()])
    return _table(recommendation_csv(comparison.recommendation, comparison.finished, comparison.factors))


def load_results(sweep: str | Path) -> pandas.DataFrame:
    """The table of a sweep: the numbers of its results.csv, best run first by its objective; by DINO for `recommend`.

    Args:
        sweep: folder of the sweep, or of one run.

    Returns:
        A row per job: `job`, `status`, the parameters that differ, every metric with `_low` and `_high`, `label`,
        `error`, `folder`.

    Raises:
        ConfigError: pandas is not installed, or there is no job's result in the folder.
    """
    _pandas()
    from dbexp.compare.results import csv_text
    from dbexp.runs import record

    try:
        folder = Path(sweep).expanduser()
        runs = record.load(folder)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{sweep}: a file of the sweep cannot be read ({error})") from None
    if not runs:
        raise ConfigError(f"{sweep}: holds no result of a job; give the folder of a sweep, multirun/DATE/TIME")
    names = {run.folder: record.job_name(run.folder, folder) for run in runs}
    table = _table(csv_text(runs, record.objective_of(runs), names))
    table["folder"] = table["job"].map({name: str(path) for path, name in names.items()})
    return table


def load_pictures(sweep: str | Path, metric: str | None = None) -> pandas.DataFrame:
    """The scores of every picture of a sweep: the numbers of its pictures.csv.

    Args:
        sweep: folder of the sweep, or of one run.
        metric: a column such as "dino", whose pictures `dbexp.effect` then takes as they are; None: all columns.

    Returns:
        A row per picture: `subject`, the swept parameters, `seed`, `prompt`, `image`; of one metric its `value`, of all
        `job` and a column each.

    Raises:
        ConfigError: pandas is not installed, the folder holds no finished run, or no picture has the metric.
    """
    _pandas()
    from dbexp.compare.gather import compare

    pictures = compare([Path(sweep).expanduser()]).pictures
    if not pictures.values:
        raise ConfigError(f"{sweep}: no run has scores of pictures; give the folder of a sweep, multirun/DATE/TIME")
    if metric is not None and pictures.of(metric) is None:
        raise ConfigError(f"metric={metric}: no picture has it; choose one of {', '.join(pictures.values)}")
    table = _table(pictures.csv())
    if metric is None:
        return table
    table = table.dropna(subset=[metric]).rename(columns={metric: "value"}).reset_index(drop=True)
    return table[[name for name in (*pictures.labels, "value") if name != "job"]]


def recommend(*sweeps: str | Path) -> Recommendation:
    """Which setting of one or more sweeps to take, by the rule in `dbexp.evaluate.objective`.

    Returns:
        `settings`, `score` and `shares` of the setting, the other `standings`, `not_told_apart`, `front`, `knee`,
        `rule`; where there is none, `lacks` says what would have to be measured.

    Raises:
        ConfigError: a folder holds no run.
    """
    from dbexp.compare.gather import compare

    return compare([Path(sweep).expanduser() for sweep in sweeps]).recommendation


def _table(text: str) -> pandas.DataFrame:
    return _pandas().read_csv(io.StringIO(text), dtype={"job": str}, keep_default_na=False, na_values=[""])


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise ConfigError(f"a table {needs('pandas', 'notebook')}") from None
    return pandas
