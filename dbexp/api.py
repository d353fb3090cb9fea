"""dbexp in Python: compose, run, read results. What the command line does, by the same functions."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dbexp.config import check, groups, help
from dbexp.config.explain import explain
from dbexp.config.schema import Config
from dbexp.config.values import plain
from dbexp.core.errors import ConfigError
from dbexp.core.hashing import key_of

if TYPE_CHECKING:
    import pandas

    from dbexp.runs.record import Run

# settings -> the overrides they were composed from, which name a run
_composed_from: dict[str, list[str]] = {}


_ONE = "several values make a sweep, and compose makes one config: compose each value by itself"


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
    help.register()
    given = [str(word) for word in overrides]
    if config_dir is not None:
        place = Path(config_dir).expanduser().absolute()
        if not place.is_dir():
            raise ConfigError(f"config_dir={config_dir}: there is no such folder")
        given.append(f"hydra.searchpath=['file://{place}']")
    try:
        several = [one.input_line for one in _parsed(given) if one.is_sweep_override()]
        if several:
            raise ConfigError([f"{word}: {_ONE}; or run `dbexp -m {word}`" for word in several])
        with initialize_config_dir(str(groups.conf_dir()), version_base="1.3", job_name="dbexp"):
            composed = hydra_compose("config", overrides=given)
        checked = check.check(composed)
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(explain(error)) from None
    _composed_from[key_of(plain(checked))] = [str(word) for word in overrides]
    return checked


def _parsed(overrides: Sequence[str]) -> list[Override]:
    parsed: list[Override] = OverridesParser.create().parse_overrides(list(overrides))
    return parsed


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
    checked = check.check(cfg if isinstance(cfg, (Config, DictConfig)) else compose(cfg))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see dbexp.pipeline.command
    from dbexp.pipeline import run as stages
    from dbexp.runs import record  # torch and diffusers: seconds
    from dbexp.runs.folder import RunFolder

    place = RunFolder(Path(folder or Path("outputs") / f"{datetime.now():%Y-%m-%d/%H-%M-%S}").expanduser())
    overrides = _composed_from.get(key_of(plain(checked)), [])
    try:
        place.hydra.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.structured(checked), place.composed)
        OmegaConf.save(OmegaConf.create(overrides), place.overrides)
    except OSError as error:
        raise ConfigError(f"folder={place.path}: {error.strerror}; choose another place") from None
    stages.run(checked, place.path, overrides)
    return record.read(place.path)


def load_results(sweep: str | Path) -> pandas.DataFrame:
    """The table of a sweep: the numbers of its results.csv, best run first.

    Args:
        sweep: folder of the sweep, or of one run.

    Returns:
        A row per job: `job`, `status`, the parameters that differ, every metric with `_low` and `_high`, `label`,
        `error`, `folder`.

    Raises:
        ConfigError: pandas is not installed, or there is no job's result in the folder.
    """
    pandas = _pandas()
    from dbexp.compare.results import csv_text
    from dbexp.runs import record

    place = Path(sweep).expanduser()
    try:
        runs = record.load(place)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{sweep}: a file of the sweep cannot be read ({error})") from None
    if not runs:
        raise ConfigError(f"{sweep}: holds no result of a job; give the folder of a sweep, multirun/DATE/TIME")
    text = csv_text(runs, record.objective_of(runs))
    table = pandas.read_csv(io.StringIO(text), dtype={"job": str}, keep_default_na=False, na_values=[""])
    table["folder"] = table["job"].map({run.folder.name: str(run.folder) for run in runs})
    return table


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        raise ConfigError("load_results needs pandas: pip install 'dbexp[notebook]', or pip install pandas") from None
    return pandas
