"""A log on a full disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbexp.core.logs import LogFile


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.Logger("of this test")
    yield logger
    for handler in logger.handlers:
        handler.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is a device of Linux")
def test_a_full_disk_costs_one_line(logger: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    logger.addHandler(LogFile("/dev/full"))
    for number in range(3):
        logger.warning("line %d", number)
    assert capsys.readouterr().err == "/dev/full: the log ends here (No space left on device)\n"


def test_otherwise_it_is_a_log_file_like_any_other(
    logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.addHandler(LogFile(tmp_path / "a.log"))
    logger.warning("kept")
    logger.warning("%d", "no number")
    logger.warning("kept too")
    assert (tmp_path / "a.log").read_text() == "kept\nkept too\n"
    assert "TypeError" in capsys.readouterr().err, "a fault of ours is not hidden"
