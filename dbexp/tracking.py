"""Weights & Biases: the dashboard of a run. Every number and picture is on disk first, so nothing here may cost a run.

One W&B run per job, offline unless told otherwise. What goes there, by name:

| name | what |
|---|---|
| config | every parameter, by Hydra's dotted name |
| train/* | loss, learning rates and so on, against train/step |
| metrics/*, base/*, real/* | the columns of the table, of the run and of what it is measured against |
| tables/metrics | the table with its intervals |
| tables/prompts | prompt by prompt: the base model's picture, the run's pictures, the columns |
| pictures/contact_sheet | the contact sheet |
| an artifact of type lora | the LoRA file |

W&B keeps no direction for a metric (`define_metric` knows none since 0.31), so headings carry it as an arrow.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, cast

from PIL import Image

from dbexp.config import Config, flatten, plain
from dbexp.errors import ConfigError
from dbexp.metrics import COLUMNS, Report, summary
from dbexp.table import PAPER, REFERENCES, heading

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

FOLDER = "tracking"
"""Sub-folder of a run that holds everything W&B writes."""

_QUIET_OVERRIDES = ("hydra", "tracking", "store")  # where and how a run is kept says nothing about it
_SUBJECT_OVERRIDES = ("dataset", *(f"dataset.{field}" for field in ("name", "path", "root", "class_noun", "live")))
_NAME_LENGTH = 100
_TAG_LENGTH = 64  # W&B refuses longer tags
_PICTURE_PX = 512  # the dashboard's pictures; the run's folder has the originals
_INIT_SECONDS = 30.0
_FINISH_SECONDS = 300.0


class Tracker(Protocol):
    """Where a run tells how it goes."""

    def train(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Log rows of the training history; each has `step` and whatever else was measured then."""

    def result(self, report: Report, *, contact_sheet: Path | None, lora: Path) -> None:
        """Log the metric table, the pictures that the report names, and the LoRA.

        Args:
            report: the evaluation; the pictures must still be where it found them.
            contact_sheet: a picture file; None: there is none.
            lora: the LoRA file. It is not copied, so it must stay as it is until it is uploaded.
        """


class Disabled:
    """The tracker of a run that is not tracked: takes everything, does nothing."""

    def train(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Do nothing."""

    def result(self, report: Report, *, contact_sheet: Path | None, lora: Path) -> None:
        """Do nothing."""


def problems(cfg: Config) -> list[str]:
    """What stands in the way of tracking, to be told before anything is computed. Asks no one and nothing online."""
    if cfg.tracking.mode != "online":
        return []
    remedy = "log in with `wandb login` or set WANDB_API_KEY, or use tracking.mode=offline and upload later"
    with _environment({"WANDB_SILENT": "true"}):
        import wandb

        try:
            found = wandb.login(prompt=False, verify=False)
        except wandb.Error as error:
            return [f"tracking.mode=online: W&B refuses the login it finds ({_first_line(error)}); {remedy}"]
    return [] if found else [f"tracking.mode=online: there is no W&B login on this machine; {remedy}"]


def run_name(cfg: Config, overrides: Sequence[str], now: datetime | None = None) -> str:
    """A short name that tells runs apart: `tracking.name`, else what was overridden, else dataset and time.

    Args:
        cfg: a checked config.
        overrides: as on the command line; those that only say where and how a run is kept are left out.
        now: for a run without telling overrides; None: the present, local time.

    Example:
        >>> run_name(Config(), ["lora.rank=16", "prior.weight=0", "tracking=online"])
        'rank=16 weight=0'
    """
    if cfg.tracking.name:
        return cfg.tracking.name
    pairs = [override.lstrip("+~").partition("=")[::2] for override in overrides]
    heads = [re.split(r"[./@]", key)[0] for key, _ in pairs]
    # which subject and which preset is told by their names, however many overrides it took
    names = [cfg.dataset.name] if any(key in _SUBJECT_OVERRIDES for key, _ in pairs) else []
    names += [cfg.experiment] if "experiment" in heads and cfg.experiment else []
    said = (*_QUIET_OVERRIDES, "experiment")
    telling = [
        pair for pair, head in zip(pairs, heads, strict=True) if head not in said and pair[0] not in _SUBJECT_OVERRIDES
    ]
    if not telling and not names:
        return f"{cfg.dataset.name} {now or datetime.now():%Y-%m-%d %H:%M}"
    short = [key.rpartition(".")[2] for key, _ in telling]
    words = [
        f"{last if short.count(last) == 1 else key}={_short_value(value)}"
        for last, (key, value) in zip(short, telling, strict=True)
    ]
    return _cut(" ".join([*names, *words]), _NAME_LENGTH)


@contextmanager
def start(
    cfg: Config, *, folder: Path, name: str, group: str | None, overrides: Sequence[str] = ()
) -> Iterator[Tracker]:
    """Track the block as one W&B run, which ends with the block and is marked failed when an exception passes through.

    Trouble with W&B never reaches the block: it is logged as a warning, and what can be kept is kept. A run that cannot
    go online is kept offline.

    Args:
        cfg: a checked config.
        folder: the run's folder; W&B writes into its sub-folder `tracking` and nowhere else.
        name: see `run_name`.
        group: name of the sweep; None: a run of its own. `tracking.group` wins.
        overrides: shown as the command that made the run.

    Raises:
        ConfigError: what `problems` finds.
    """
    if cfg.tracking.mode == "disabled":
        yield Disabled()
        return
    if said := problems(cfg):
        raise ConfigError(said)
    place = folder.absolute() / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    with _environment(_inside(place, cfg.tracking.mode)):
        tracker = _begin(cfg, place, name, group, overrides)
        exit_code = 1
        try:
            yield tracker or Disabled()
            exit_code = 0
        finally:
            if tracker is not None:
                tracker.finish(exit_code)


class _WandbTracker:
    """Logs to one W&B run; every part on its own, so that one that fails costs no other."""

    def __init__(self, run: wandb.Run, cfg: Config, name: str) -> None:
        self._run, self._cfg, self._name = run, cfg, name

    def train(self, rows: Sequence[Mapping[str, float]]) -> None:
        with _harmless("part of the training history"):
            for row in rows:
                self._run.log({f"train/{key}": value for key, value in row.items()})

    def result(self, report: Report, *, contact_sheet: Path | None, lora: Path) -> None:
        with _harmless("the metrics"):
            self._run.log(_scalars(report))
            self._run.summary["label"] = report.label
        with _harmless("the metric table"):
            self._run.log({"tables/metrics": _metric_table(report, self._name)})
        if self._cfg.tracking.images:
            with _harmless("the pictures"):
                self._run.log({"tables/prompts": _prompt_table(report)})
            if contact_sheet is not None:
                with _harmless("the contact sheet"):
                    self._run.log({"pictures/contact_sheet": _picture(contact_sheet, largest=None)})
        if self._cfg.tracking.artifact:
            with _harmless("the LoRA"):
                self._run.log_artifact(_artifact(self._cfg, report, lora))

    def finish(self, exit_code: int) -> None:
        """End the run: 0 finished, 1 failed."""
        with _harmless("the end of the run"):
            self._run.finish(exit_code=exit_code)


def _begin(cfg: Config, place: Path, name: str, group: str | None, overrides: Sequence[str]) -> _WandbTracker | None:
    """The run in the mode asked for, else offline, else none, a warning at each step down."""
    for mode in dict.fromkeys((cfg.tracking.mode, "offline")):
        with _harmless(f"the run, which could not start {mode}"):
            run = _init(cfg, place, name, group, overrides, mode)
            where = run.url if mode == "online" else f"offline; upload it with: wandb sync {Path(run.dir).parent}"
            log.info("tracking: %s", where)
            return _WandbTracker(run, cfg, name)
    return None


def _init(cfg: Config, place: Path, name: str, group: str | None, overrides: Sequence[str], mode: str) -> wandb.Run:
    import wandb

    logging.getLogger("wandb").propagate = False  # its own log file has what it says; the run's log is for the user
    run = wandb.init(
        mode=cast(Literal["online", "offline"], mode),
        dir=place,
        project=cfg.tracking.project,
        entity=cfg.tracking.entity,
        group=cfg.tracking.group or group,
        name=name,
        tags=_tags(cfg),
        notes=" ".join(["dbexp", *overrides]),
        config=flatten(plain(cfg)),
        # Never the run of another job in this process, finished or not.
        reinit="create_new",
        settings=wandb.Settings(
            silent=True,
            console="off",
            host="",
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=_INIT_SECONDS,
            finish_timeout=_FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    )
    run.define_metric("train/step", hidden=True)
    run.define_metric("train/*", step_metric="train/step")
    return run


def _tags(cfg: Config) -> list[str]:
    """Experiment, dataset, model, and the user's own; each once."""
    tags = [cfg.experiment, cfg.dataset.name, cfg.model.name, *cfg.tracking.tags]
    return list(dict.fromkeys(_cut(tag, _TAG_LENGTH) for tag in tags if tag))


def _scalars(report: Report) -> dict[str, float]:
    """metrics/, base/ and real/ with every column that has a value."""
    rows = {"metrics": report.rows["run"]} | {key: report.rows[key] for key in REFERENCES if key in report.rows}
    return {
        f"{section}/{column}": estimate.value
        for section, columns in rows.items()
        for column, estimate in columns.items()
        if not math.isnan(estimate.value)
    }


def _metric_table(report: Report, name: str) -> wandb.Table:
    """The run with the ends of its intervals, the base model, the real images; a column per metric."""
    import wandb

    percent = f"{100 * report.settings['confidence']:g} %"
    run = report.rows["run"]
    rows: list[tuple[str, dict[str, float]]] = [
        (name, summary(report)),
        (f"{percent} from", {column: estimate.low for column, estimate in run.items()}),
        (f"{percent} to", {column: estimate.high for column, estimate in run.items()}),
    ]
    for key, title in REFERENCES.items():
        if key in report.rows:
            rows.append((title, {column: estimate.value for column, estimate in report.rows[key].items()}))
    return wandb.Table(
        columns=["row", "label", *map(heading, COLUMNS)],
        data=[[title, report.label, *(_number(values.get(column)) for column in COLUMNS)] for title, values in rows],
    )


def _prompt_table(report: Report) -> wandb.Table:
    """A row per prompt: the base model's first picture beside the run's pictures, and the paper's columns."""
    import wandb

    paths = {(image.row, image.prompt, image.index): Path(image.path) for image in report.images}
    numbers = sorted({index for row, _, index in paths if row == "run"})
    prompts = [scores for scores in report.prompts if scores.row == "run"]
    columns = [column for column in PAPER if any(column in scores.values for scores in prompts)]

    def picture(row: str, prompt: str, index: int) -> wandb.Image | None:
        path = paths.get((row, prompt, index))
        return None if path is None else _picture(path, largest=_PICTURE_PX)

    return wandb.Table(
        columns=["prompt", "group", REFERENCES["base"], *(f"{k + 1}" for k in numbers), *map(heading, columns)],
        data=[
            [
                scores.prompt,
                scores.group,
                picture("base", scores.prompt, 0),
                *(picture("run", scores.prompt, k) for k in numbers),
                *(_number(scores.values.get(column)) for column in columns),
            ]
            for scores in prompts
        ],
    )


def _picture(path: Path, largest: int | None) -> wandb.Image:
    """A file's picture as JPEG, its longer side at most `largest` pixels (None: as it is)."""
    import wandb

    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    if largest is not None:
        picture.thumbnail((largest, largest))
    return wandb.Image(picture, file_type="jpg")


def _artifact(cfg: Config, report: Report, lora: Path) -> wandb.Artifact:
    """The LoRA, versioned by W&B under its subject and model."""
    import wandb

    artifact = wandb.Artifact(
        name=re.sub(r"[^\w.-]", "-", f"lora-{cfg.dataset.name}-{cfg.model.name}"),
        type="lora",
        metadata={
            "model": cfg.model.name,
            "token": cfg.dataset.token,
            "class": cfg.dataset.class_noun,
            "label": report.label,
            "metrics": {column: value for column, value in summary(report).items() if not math.isnan(value)},
        },
    )
    # The run's file is never changed, so W&B needs no copy of it.
    artifact.add_file(str(lora), name=lora.name, policy="immutable")
    return artifact


@contextmanager
def _harmless(what: str) -> Iterator[None]:
    """Turn any exception of the block into a warning."""
    try:
        yield
    except Exception as error:
        log.warning(
            "tracking: W&B lacks %s (%s: %s); the run's folder has everything",
            what,
            type(error).__name__,
            _first_line(error),
        )


def _inside(place: Path, mode: str) -> dict[str, str]:
    """Environment that keeps what W&B stages for upload beside the run, and an offline run off the network."""
    inside = {"WANDB_DATA_DIR": str(place / "data"), "WANDB_CACHE_DIR": str(place / "cache"), "WANDB_SILENT": "true"}
    return inside if mode == "online" else inside | {"WANDB_ERROR_REPORTING": "false"}


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block; W&B has no other way to be told these."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _number(value: float | None) -> float | None:
    """A cell of a W&B table, which has None where we have NaN."""
    return None if value is None or math.isnan(value) else value


def _short_value(value: str) -> str:
    """An override's value without quotes; of a path only the last part."""
    value = value.strip("'\"")
    is_path = value.startswith(("/", "~", "./", "../"))
    return Path(value).name if is_path else value


def _cut(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "no message")
