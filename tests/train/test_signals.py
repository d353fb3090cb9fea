"""Signals that come while lanes train."""

import io
import logging
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from dbexp.train.signals import Signals


class _Terminal(io.RawIOBase):
    """Where the user presses Ctrl-C while the first line is being written."""

    def __init__(self) -> None:
        self.text = ""
        self.lines = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.lines += 1
        if self.lines == 1:
            signal.raise_signal(signal.SIGINT)
        self.text += bytes(data).decode()
        return len(data)


@pytest.fixture
def terminal() -> Iterator[_Terminal]:
    raw = _Terminal()
    logger = logging.getLogger("dbexp.train.signals")
    handler = logging.StreamHandler(io.TextIOWrapper(io.BufferedWriter(raw)))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield raw
    logger.removeHandler(handler)
    logger.setLevel(level)


class TestSignals:
    def test_a_signal_while_a_line_is_logged(self, terminal: _Terminal, capsys: pytest.CaptureFixture[str]) -> None:
        with Signals() as signals:
            logging.getLogger("dbexp.train.signals").info("train: step 1")
        assert signals.received == signal.SIGINT
        assert terminal.text == "train: step 1\ntrain: SIGINT: finishing this step and saving\n"
        assert not capsys.readouterr().err  # "--- Logging error ---" and a traceback
