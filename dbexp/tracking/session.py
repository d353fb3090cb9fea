"""Opening W&B runs: in the mode asked for, inside the run's folder, and so that trouble never reaches the caller."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dbexp.config.schema import Config
from dbexp.core.errors import first_line
from dbexp.evaluate.columns import COLUMNS, RECOMMEND, column_of
from dbexp.tracking.records import Records, RunRecord

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

Mode = Literal["online", "offline"]

INIT_SECONDS = 30.0
FINISH_SECONDS = 300.0

_SUMMARY = {"higher": "max", "lower": "min", "neither": "last"}
"""Better direction of a column -> what W&B is told to keep of it."""


class Attempts:
    """Does what may fail at no cost: an exception becomes a warning, and is remembered.

    Attributes:
        failed: what W&B lacks, each once.
    """

    def __init__(self, whose: str = "the run's") -> None:
        self._whose = whose
        self.failed: list[str] = []

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Turn an exception of the block into a warning, the first time."""
        try:
            yield
        except Exception as error:
            if what not in self.failed:
                self.failed.append(what)
                log.warning(
                    "tracking: W&B lacks %s (%s); %s folder has everything",
                    what,
                    first_line(error, typed=True),
                    self._whose,
                )


def problems(cfg: Config) -> list[str]:
    """What stands in the way of tracking, to be told before anything is computed. Asks no one and nothing online."""
    if cfg.tracking.mode != "online":
        return []
    if (variable := _contradiction()) is not None:
        return [
            f"tracking.mode=online: the environment says {variable}={os.environ[variable]}; unset {variable}, or use "
            "tracking.mode=offline and upload later"
        ]
    problem = login_problem()
    return [f"tracking.mode=online: {problem}, or use tracking.mode=offline and upload later"] if problem else []


def _contradiction() -> str | None:
    """The environment variable that keeps W&B from going online, whatever a config says."""
    if os.environ.get("WANDB_MODE", "online").lower() in ("offline", "disabled", "dryrun"):
        return "WANDB_MODE"
    return "WANDB_DISABLED" if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on") else None


def conflicts(cfg: Config) -> list[str]:
    """What the environment says of where runs go, where the config says another place and so is followed.

    The agent of a W&B Sweep sets these variables itself, and W&B follows the agent.
    """
    if "WANDB_SWEEP_ID" in os.environ:
        return []
    messages = []
    for field, place in {"project": cfg.tracking.project, "entity": cfg.tracking.entity}.items():
        variable = f"WANDB_{field.upper()}"
        other = os.environ.get(variable)
        if place and other and other != place:
            messages.append(
                f"tracking.{field}={place}: the run goes there, though the environment says {variable}={other}; for "
                f"the latter use tracking.{field}={other}"
            )
    return messages


def login_problem() -> str | None:
    """Why nothing could be uploaded from here, as a sentence with the remedy; asks no one and nothing online."""
    if (variable := _contradiction()) is not None:
        return f"the environment says {variable}={os.environ[variable]}; unset {variable}"
    remedy = "log in with `wandb login` or set WANDB_API_KEY"
    with environment({"WANDB_SILENT": "true"}):
        import wandb

        try:
            logged_in = wandb.login(prompt=False, verify=False)
        except wandb.Error as error:
            return f"W&B refuses the login it finds ({first_line(error)}); {remedy}"
    return None if logged_in else f"there is no W&B login on this machine; {remedy}"


def open_run(record: RunRecord, mode: Mode, folder: Path, *, is_live: bool = False) -> wandb.Run:
    """Begin a W&B run, or go on with it where the server has it already.

    Args:
        record: of the run. Under an agent of a W&B Sweep the run has the id that the agent gave it.
        mode: online or offline.
        folder: for what W&B writes.
        is_live: whether it is this process that runs it: only then are machine and code those of the run.
    """
    has_system, has_code = (
        is_live and mode == "online" and bool(record.config.get(f"tracking.{what}", True))
        for what in ("system", "code")
    )

    logging.getLogger("wandb").propagate = False  # its own log file has what it says; the run's log is for the user
    with _lenient_log():
        run = _init(record, mode, folder, has_system=has_system, has_code=has_code)
    run.define_metric("train/step", hidden=True)
    run.define_metric("train/*", step_metric="train/step")
    for name in (*COLUMNS, RECOMMEND):
        run.define_metric(f"metrics/{name}", summary=_SUMMARY[column_of(name).better])
    return run


def _init(record: RunRecord, mode: Mode, folder: Path, *, has_system: bool, has_code: bool) -> wandb.Run:
    import wandb

    return wandb.init(
        mode=mode,
        dir=folder,
        id=record.id,
        resume="allow" if mode == "online" else None,  # offline there is nothing to go on with, and W&B would say so
        project=record.project,
        entity=record.entity,
        group=record.group,
        job_type=record.kind,
        name=record.name,
        tags=list(record.tags),
        notes=record.notes,
        config=dict(record.config),
        # never the W&B run of another run in this process, finished or not
        reinit="create_new",
        # the switches with x_ are not promised by W&B; checked with wandb 0.31.0
        settings=wandb.Settings(
            silent=True,
            console="off",
            host="",
            disable_git=not has_code,
            disable_code=not has_code,
            disable_job_creation=True,
            x_disable_stats=not has_system,
            x_disable_meta=not (has_system or has_code),
            x_disable_machine_info=not has_system,
            x_save_requirements=has_system,
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
            finish_timeout_raises=True,
        ),
    )


@contextmanager
def _lenient_log() -> Iterator[None]:
    """Let the log file that W&B opens in the block fail in silence. Python prints a traceback for every line that does
    not fit on the disk; what W&B lacks for it is told by `Attempts`."""
    before, logging.raiseExceptions = logging.raiseExceptions, False
    try:
        yield
    finally:
        logging.raiseExceptions = before
        for handler in logging.getLogger("wandb").handlers:
            handler.handleError = lambda record: None  # type: ignore[method-assign]  # its only way to be told so


def forget_offline_files(records: Records) -> None:
    """Delete what W&B wrote offline of an earlier attempt, which the records of the next one replace."""
    for path in records.offline_files():
        shutil.rmtree(path.parent, ignore_errors=True)
    for staged in ("data", "cache"):
        shutil.rmtree(records.path / staged, ignore_errors=True)


def inside(folder: Path, mode: str, *, is_agents: bool = False) -> dict[str, str | None]:
    """Environment that keeps what W&B stages for upload beside the run, and an offline run off the network.

    Args:
        folder: of the run's records.
        mode: online or offline.
        is_agents: whether an agent of a W&B Sweep started this one run, which then takes the id that the agent chose.
            The runs of a multirun below an agent must not: they would all be one run of W&B.
    """
    values: dict[str, str | None] = {
        "WANDB_DATA_DIR": str(folder / "data"),
        "WANDB_CACHE_DIR": str(folder / "cache"),
        "WANDB_SILENT": "true",
    }
    if not is_agents:
        values |= dict.fromkeys(("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RESUME"))
    return values if mode == "online" else values | {"WANDB_ERROR_REPORTING": "false"}


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables for the block, None to unset; W&B has no other way to be told these."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
