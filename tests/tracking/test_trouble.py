"""Weights & Biases failing in every way, at no cost to the run."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dbexp import tracking
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError
from dbexp.tracking.records import Records
from tests.tracking.runs import evaluate

ROWS = [{"step": 1, "loss": 0.5}]


def config(mode: str = "offline") -> Config:
    cfg = Config()
    cfg.dataset.name, cfg.model.name, cfg.tracking.mode = "dog3", "random", mode
    return cfg


class Broken:
    """Stands for wandb, or a run of it: whatever is asked of it fails."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionError(f"no route to {name}\nsecond line")


class Half(Broken):
    """A wandb that starts a run; then the connection goes."""

    def __init__(self) -> None:
        self.modes: list[str] = []

    def Settings(self, **_: Any) -> None:
        return None

    def init(self, *, mode: str, **_: Any) -> Any:
        self.modes.append(mode)
        return _LostRun()


class _LostRun(Broken):
    dir = url = "somewhere"
    id, starting_step, offline = "abc", 0, True

    def define_metric(self, name: str, **_: Any) -> None:
        """Still works."""


class Unreachable(Half):
    """A wandb with a login, whose server does not answer."""

    Error = RuntimeError

    def login(self, **_: Any) -> bool:
        return True

    def init(self, *, mode: str, **rest: Any) -> Any:
        run = super().init(mode=mode, **rest)
        if mode == "online":
            raise TimeoutError("no answer")
        return run


class LoggedOut(Broken):
    """A wandb without a login."""

    Error = RuntimeError

    def login(self, *, prompt: bool, verify: bool) -> bool:
        return prompt or verify


def use(monkeypatch: pytest.MonkeyPatch, wandb: Any) -> None:
    """Let `import wandb` find this."""
    monkeypatch.setitem(sys.modules, "wandb", wandb)


def whole_run(cfg: Config, folder: Path) -> str:
    evaluate(folder)
    with tracking.start(cfg, folder=folder, name="run", group=None) as tracker:
        tracker.train(ROWS)
        tracker.result()
        return "done"


def test_disabled_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Broken())
    before = dict(os.environ)
    with tracking.start(config("disabled"), folder=tmp_path, name="run", group=None) as tracker:
        assert dict(os.environ) == before
        tracker.train(ROWS)
        tracker.result()
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_cannot_start_costs_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, Broken())
    with caplog.at_level(logging.WARNING):
        assert whole_run(config(), tmp_path) == "done"
    (warning,) = caplog.messages
    record = Records(tmp_path).run()
    assert record is not None and record.lacks == ("the run, which could not start offline",)
    assert warning == (
        "tracking: W&B lacks the run, which could not start offline "
        "(ConnectionError: no route to init); the run's folder has everything"
    )


def test_wandb_that_fails_at_every_call_costs_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(monkeypatch, Half())
    with caplog.at_level(logging.WARNING):
        assert whole_run(config(), tmp_path) == "done"
    lacks = [message.removeprefix("tracking: W&B lacks ").partition(" (")[0] for message in caplog.messages]
    assert lacks == [
        "part of the training history",
        "the metrics",
        "the metric table",
        "the pictures",
        "the contact sheet",
        "the LoRA",
        "the end of the run",
    ]
    record = Records(tmp_path).run()
    assert record is not None and record.lacks == tuple(lacks), "its folder says so"
    assert (record.exit_code, record.error) == (0, None), "but the run is well"


def test_the_runs_own_error_is_the_one_that_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Half())
    with pytest.raises(ZeroDivisionError), tracking.start(config(), folder=tmp_path, name="run", group=None):
        raise ZeroDivisionError


def test_a_server_that_does_not_answer_leaves_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wandb = Unreachable()
    use(monkeypatch, wandb)
    with tracking.start(config("online"), folder=tmp_path, name="run", group=None) as tracker:
        pass
    assert "the run, which could not start online" in tracker.lacks
    assert wandb.modes == ["online", "offline"]
    assert "could not start online (TimeoutError: no answer)" in caplog.messages[0]


# ----------------------------------------------------------------------------------------- logins


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_only_online_needs_a_login(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Broken())
    assert tracking.problems(config(mode)) == []


def test_a_missing_login_stops_the_run_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, LoggedOut())
    with (
        pytest.raises(ConfigError, match=r"tracking\.mode=online.*wandb login"),
        tracking.start(config("online"), folder=tmp_path, name="run", group=None),
    ):
        pytest.fail("the block must not be entered")
    assert list(tmp_path.iterdir()) == []
