"""What the jobs of test_launcher_gpus.py do in their process. It imports little, so that a process is soon there."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def process_and_device(cfg: DictConfig) -> list[Any]:
    """Which process ran it, and what it sees."""
    return [os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], cfg.seed]


def kills_its_process_once(cfg: DictConfig) -> int:
    """Job 1 kills its process, unless it did so before."""
    marker = Path(cfg.store) / "killed"
    with (Path(cfg.store) / "began").open("a") as file:
        file.write(f"{cfg.seed}\n")
    if cfg.seed == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return int(cfg.seed)


def always_kills_its_process(cfg: DictConfig) -> int:
    """Job 1 kills its process."""
    if cfg.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(cfg.seed)


class Stubborn(Exception):
    """Cannot be unpickled: its arguments are not those of its message."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def fails_oddly(cfg: DictConfig) -> None:
    """Raise what does not travel."""
    raise Stubborn(1, 2)
