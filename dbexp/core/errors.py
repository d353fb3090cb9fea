"""The one exception a user is meant to see."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class ConfigError(ValueError):
    """Bad input, told in the user's terms: which field, which value, what would be right.

    Carries every problem found, so that a user mends a command once and not five times. The command line prints the
    message without a traceback and exits with status 1.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        """Travels from the worker of a sweep with its problems apart."""
        return type(self), (self.problems,)


class Problems:
    """Collects messages during a check and raises them together.

    Example:
        >>> problems = Problems()
        >>> problems.require(3 > 2, "never said")
        >>> problems.raise_if_any()
    """

    def __init__(self) -> None:
        self.messages: list[str] = []

    def require(self, condition: bool, message: str) -> None:
        """Note `message` unless `condition` holds."""
        if not condition:
            self.messages.append(message)

    def raise_if_any(self) -> None:
        """Raise `ConfigError` with every message noted so far; do nothing when there is none."""
        if self.messages:
            raise ConfigError(self.messages)


class Interrupted(Exception):
    """A signal asked the run to stop; everything done so far is saved, and the same command goes on from there."""

    def __init__(self, signum: int, message: str) -> None:
        self.signum = signum
        super().__init__(message)

    def __reduce__(self) -> tuple[type, tuple[int, str]]:
        """Travels from the worker of a sweep, which needs both arguments again."""
        return type(self), (self.signum, str(self))


class TrainingDiverged(Exception):
    """A run's loss became NaN or infinite.

    Attributes:
        checkpoint: the last LoRA before it did; None if none was saved.
    """

    def __init__(self, message: str, checkpoint: Path | None = None) -> None:
        self.checkpoint = checkpoint
        super().__init__(message)
