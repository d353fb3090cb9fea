"""Trained runs, found again from their folders: what was trained, on which base, how it was sampled."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError, first_line
from dbexp.core.hashing import file_hash
from dbexp.evaluate.columns import COLUMNS
from dbexp.runs import record
from dbexp.runs.record import ranked

LORA = Path("train") / "lora.safetensors"


@dataclass(frozen=True)
class Run:
    """A run whose LoRA is there."""

    folder: Path
    name: str
    """As in the dashboard; the folder's name for a run that did not end."""
    config: Config
    lora: Path
    chosen: str | None = None
    """Why this one, if it was picked from a sweep."""

    @property
    def lora_hash(self) -> str:
        """sha256 of the LoRA file."""
        return file_hash(self.lora)


def open_runs(folders: list[str], objective: str | None) -> list[Run]:
    """The runs of some folders, in order.

    Args:
        folders: of runs, or of sweeps, which stand for their best run.
        objective: column that picks the best; None: the one that the sweep's runs name.

    Raises:
        ConfigError: with the problems of every folder.
    """
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(open_run(Path(folder).expanduser(), objective))
        except ConfigError as error:
            problems += [f"run={folder}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
    return runs


def open_run(folder: Path, objective: str | None) -> Run:
    """The run of one folder, or the best of a sweep's folder.

    Raises:
        ConfigError: there is no such run, or it has no LoRA.
    """
    if not folder.is_dir():
        raise ConfigError("there is no such folder; give the folder of a run, outputs/DATE/TIME, or of a sweep")
    if _is_run(folder):
        return _read(folder)
    return _best(folder, objective)


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, however far the run came."""
    return any((folder / name).exists() for name in (LORA, "result.json", ".hydra"))


def _best(sweep: Path, objective: str | None) -> Run:
    try:
        runs = record.load(sweep)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"a file of the sweep cannot be read ({error})") from None
    if not runs:
        raise ConfigError(
            "holds neither a run nor a sweep; give a folder such as outputs/DATE/TIME or multirun/DATE/TIME"
        )
    wanted = objective or str(runs[0].config.get("objective", "dino")).split(",")[0].strip()
    if wanted not in COLUMNS:
        raise ConfigError(f"its objective {wanted} is no column of the table; give objective={next(iter(COLUMNS))}")
    finished = ranked(runs, wanted)
    if not finished:
        raise ConfigError(f"none of its {len(runs)} runs is finished")
    best = finished[0]
    assert best.report is not None
    row = best.report.rows["run"]
    value = f" of {row[wanted].value:.3f}" if wanted in row else ""
    return replace(_read(best.folder), chosen=f"the best {wanted}{value} among {len(finished)} runs")


def _read(folder: Path) -> Run:
    lora = folder / LORA
    if not lora.is_file():
        raise ConfigError(
            f"holds no {LORA.as_posix()}: its training did not end; repeat the run, which goes on where it stopped"
        )
    name = folder.name
    result = folder / "result.json"
    if result.is_file():
        name = json.loads(result.read_text(encoding="utf-8")).get("name", name)
    return Run(folder, name, _config(folder), lora)


def _config(folder: Path) -> Config:
    """What the run was made with: from its record, or from Hydra's for a run that has none yet."""
    record, composed = folder / "evaluate" / "metrics.json", folder / ".hydra" / "config.yaml"
    try:
        if record.is_file():
            return _structured(json.loads(record.read_text(encoding="utf-8"))["config"])
        if composed.is_file():
            return _structured(OmegaConf.to_container(OmegaConf.load(composed), resolve=True))
    except (OSError, ValueError, KeyError, OmegaConfBaseException) as error:
        raise ConfigError(f"its config cannot be read, or is another version's ({first_line(error)})") from None
    raise ConfigError(f"holds neither {record.relative_to(folder)} nor {composed.relative_to(folder)}")


def _structured(settings: Any) -> Config:
    """Plain settings as dataclasses. The rules of a run to come (libraries, folders of pictures) do not matter here."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(settings)))
    assert isinstance(config, Config)
    return config
