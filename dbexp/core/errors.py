"""The one exception a user is meant to see, and the wording that messages share."""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_UNSAFE = re.compile(
    r"allow_pickle|weights_only|trust_remote_code|safe_globals|use_safetensors|unsafe|you trust|pickle\.load|"
    r"two options|malicious use",
    re.IGNORECASE,
)
# What C++, oneDNN (whose code or buffers do not fit), torch and the loader of libraries say of a lack of memory. Not
# among it is what oneDNN says of operations that it lacks ("could not create a primitive descriptor").
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "can't start new thread",
    "cannot allocate memory",
    "bad_alloc",
    "could not create a memory object",
)
_PRIMITIVE = "could not create a primitive"
SPARE_MEMORY = "free some, or raise its limits (ulimit -v and -d)"
"""A remedy where nothing is known of what took it."""
_UNSAID = "without setting an exception"  # what Python says of code in C that could not even say it
_UNMAPPED = "failed to map segment from shared object"
_FIELD = re.compile(r"[\w.]+")
_LONG_WORD = re.compile(r"\S{500,}")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


class ConfigError(ValueError):
    """Bad input, told in the user's terms: which field, which value, what would be right.

    Carries every problem found, so that a user mends a command once and not five times. The command line prints the
    message without a traceback and exits with status 1.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        # each once: several parts may stumble over one thing
        several = (problems,) if isinstance(problems, str) else dict.fromkeys(problems)
        self.problems: tuple[str, ...] = tuple(map(_printable, several))
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...]]]:
        """Travels from the worker of a sweep with its problems apart."""
        return type(self), (self.problems,)


def _printable(message: str) -> str:
    """A message in one line that a terminal can show and does not act upon, whatever values it quotes."""
    line = "".join(c if c.isprintable() else " " if c == "\n" else ascii(c)[1:-1] for c in message)
    return _LONG_WORD.sub(lambda word: f"{word[0][:200]}... ({len(word[0]):,} characters)", line)


def fields_of(problems: Iterable[str]) -> set[str]:
    """The parameters that messages begin with."""
    return {match[0] for problem in problems if (match := _FIELD.match(problem))}


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

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what a `ConfigError` of the block says, and go on behind it."""
        try:
            yield
        except ConfigError as error:
            self.messages += error.problems

    def raise_if_any(self) -> None:
        """Raise `ConfigError` with every message noted so far; do nothing when there is none."""
        if self.messages:
            raise ConfigError(self.messages)


def needs(package: str, extra: str) -> str:
    """What to say where a package is missing that an extra of dbexp brings, as the README says it."""
    return f"needs the package {package}; pip install '.[{extra}]' in dbexp's folder"


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


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, what it came from, what that came from, ...; none from one on that has been worded for users."""
    while error is not None and not isinstance(error, ConfigError):
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception, or what it was raised from, says that memory of the host did not suffice.

    Needs no torch, which may be what did not fit; `dbexp.core.device.is_out_of_memory` knows what devices say, too.
    """
    return any(map(_says_out_of_memory, causes(error)))


def _says_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    if isinstance(error, ImportError):
        return _OUT_OF_MEMORY[2] in text or text.rstrip().endswith(_UNMAPPED)  # ": Operation not permitted" is another
    if isinstance(error, SystemError):
        return _UNSAID in text
    first = text.split("\n")[0].strip()
    return isinstance(error, RuntimeError) and (first == _PRIMITIVE or any(words in text for words in _OUT_OF_MEMORY))


def memory_message(error: BaseException, remedy: str) -> str:
    """What a user is told of a lack of memory.

    Args:
        error: that says so; what it was raised from says it best.
        remedy: what would need less.
    """
    first = [error, *filter(_says_out_of_memory, causes(error))][-1]
    return f"memory did not suffice ({first_line(first, typed=True)}); {remedy}"


def first_line(error: BaseException | str | None, *, typed: bool = False) -> str:
    """The first line of what an exception says, or of a message on record.

    Args:
        error: an exception that says nothing gives the name of its class, no message that there is none.
        typed: begin with the class of the exception, for those whose message means little without it.
    """
    lines = [_without_unsafe_advice(line) for line in str(error or "").strip().splitlines()[:1]]
    if not isinstance(error, BaseException):
        return lines[0] if lines else "no reason is on record"
    kind = type(error).__name__
    return ": ".join([kind, *lines[:1]]) if typed or not lines else lines[0]


def _without_unsafe_advice(line: str) -> str:
    """A library's sentence without its hints at how to load a file that it distrusts, code of strangers and all."""
    sentences = re.split(r"(?<=[.!?])\s+", _ESCAPES.sub("", line))
    return " ".join(s for s in sentences if not _UNSAFE.search(s)).strip() or "it cannot be loaded safely"


def shown(value: object, most: int = 200) -> str:
    """A value as messages have it: null, true and false as one writes them; with escapes what a terminal would act upon
    or cannot show; cut where it is longer than `most` characters."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    try:
        text = str(value)
    except ValueError:  # Python writes no number of thousands of digits
        return "a number of thousands of digits"
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean lora.rank?` to put after a complaint about a word; empty where nothing known is like it.

    Names of the same last part (after a dot or a slash) come before names that are only spelt alike.
    """
    names = sorted(known)
    last = _last_part(word)
    close = [name for name in names if _last_part(name) == last] or difflib.get_close_matches(word, names, n=1)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def _last_part(name: str) -> str:
    return re.split("[./]", name)[-1]


def listed(words: Sequence[str], most: int | None = None) -> str:
    """`a, b and c`; where there are more than `most`: `a, b and 7 more`."""
    if most is not None and len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 run`, `2,000 runs`; `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def byte_size(number: int) -> str:
    """A number of bytes as disks and clusters count them: `700 bytes`, `1.5 GB` of 10^9 bytes each."""
    size, units = float(number), ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.{0 if units[0] == 'bytes' else 1}f} {units[0]}"
