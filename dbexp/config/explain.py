"""What went wrong, in the user's terms: one message, whatever library raised it."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any, get_type_hints

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from dbexp.config import groups, help, overrides
from dbexp.config.schema import Config
from dbexp.core import disk, interrupts
from dbexp.core.errors import (
    SPARE_MEMORY,
    ConfigError,
    Interrupted,
    did_you_mean,
    first_line,
    lacks_memory,
    memory_message,
    needs,
)

_HELP = "`dbexp --help` lists all"
# what Hydra says of several values without --multirun
_SEVERAL = re.compile(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'")
# launchers of Hydra that a plugin brings -> its package, and the extra of this one that installs it
_EXTRAS = {
    "joblib": ("hydra-joblib-launcher", "joblib"),
    "ray": ("hydra-ray-launcher", "ray"),
    "submitit_local": ("hydra-submitit-launcher", "slurm"),
    "submitit_slurm": ("hydra-submitit-launcher", "slurm"),
}


def version() -> str:
    """What `--version` prints, of every command."""
    try:
        return f"dbexp {metadata.version('dbexp')}"
    except metadata.PackageNotFoundError:
        return "dbexp, from a checkout that is not installed"


@contextmanager
def user_errors(program: str, kept: str) -> Iterator[None]:
    """What a user can mend ends the block with one message and status 1; Ctrl-C and SIGTERM end it with one that says
    what there is, and status 130 or 143.

    Args:
        program: name of the command.
        kept: what a signal leaves and how to go on, unless `Interrupted` says so.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see dbexp.pipeline.command
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("dbexp").setLevel(logging.INFO)
    with interrupts.sigterm_raised():
        try:
            yield
        except ConfigError as error:
            sys.exit(f"{program}: {explain(error)}")
        except KeyboardInterrupt as stop:
            sys.exit(stopped(program, Interrupted(interrupts.signum_of(stop), f"stopped; {kept}")))
        except Interrupted as stop:
            sys.exit(stopped(program, stop))
        except Exception as error:
            if lacks_memory(error):
                sys.exit(f"{program}: {memory_message(error, SPARE_MEMORY)}")
            if isinstance(error, OSError) and disk.refuses(error):
                sys.exit(f"{program}: {disk.message(error, {})}")
            raise


def stopped(program: str, stop: Interrupted) -> int:
    """Say what a signal leaves; the exit status is the shell's for the signal."""
    print(f"{program}: {stop}", file=sys.stderr)
    return 128 + stop.signum


def explain(error: Exception) -> str:
    """One clear message: what is wrong, with which value, and what would be right.

    Args:
        error: one of this package's exceptions, or of Hydra's or OmegaConf's.
    """
    cause = error.__cause__ or error
    if isinstance(error, ConfigError):
        several = len(error.problems) > 1
        return "\n  ".join([f"{len(error.problems)} problems", *error.problems]) if several else str(error)
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        return _no_option(str(error.missing_cfg_file), error.options or ())
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    name = getattr(cause, "full_key", None)
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and name:
        return f"{name}: there is no such parameter{did_you_mean(name, parameters()) or ';'} {_HELP}"
    if sweeps := _SEVERAL.match(first_line(error)):
        return _several(sweeps[1])
    message = first_line(error).removeprefix("Error merging override ")
    return message if cause is error else f"{message}: {first_line(cause)}"


def parameters(cls: type = Config, prefix: str = "") -> dict[str, Any]:
    """Dotted name -> type of all fields of a dataclass, and of the dataclasses in it."""
    types: dict[str, Any] = {}
    for name, hint in get_type_hints(cls).items():
        types[prefix + name] = hint
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            types |= parameters(hint, f"{prefix}{name}.")
    return types


def _no_option(file: str, known: Any) -> str:
    """Of a group and an option that nobody has."""
    group, _, option = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
    if group == "hydra/launcher" and option in _EXTRAS:
        return f"{group}={option}: {needs(*_EXTRAS[option])}"
    names = {*groups.options([groups.conf_dir()]).get(group, []), *known}
    return f"{group}={option}: there is no such option{did_you_mean(option, names) or ';'} {_HELP}"


def _unreadable(override: str) -> str:
    """Of an override that is not in Hydra's grammar."""
    name, sign, value = override.partition("=")
    if not sign or not name:
        return f"{override}: write NAME=VALUE"
    kind = parameters().get(name)
    if value.startswith("[") and not value.endswith("]") and re.search("list|Any", str(kind)):
        return f"{override}: a list ends with a bracket, {name}=[first,second]"
    if str(kind).startswith("dict"):
        return f"{override}: is not in Hydra's grammar; texts in a dictionary need quotes, '{name}={{key:\"text\"}}'"
    if kind is not None and not re.search("str|Any", str(kind)):
        value_of = "the name of an option" if dataclasses.is_dataclass(kind) else help.type_name(kind)
        return f"{override}: is not in Hydra's grammar; {name} takes {value_of}"
    hint = overrides.in_quotes(override)
    if hint is None:
        return f"{override}: is not in Hydra's grammar; most values can be written in quotes, '{name}=\"value\"'"
    each = ", and for a sweep around each value" if "," in value and not value.startswith("[") else ""
    return f"{override}: Hydra's grammar needs quotes around this value{each}: {hint}"


def _several(override: str) -> str:
    """Of several values for one run."""
    name = override.partition("=")[0]
    hint = str(parameters().get(name, ""))
    if "str" in hint and "list" not in hint and (quotes := overrides.in_quotes(override)):
        also = f"; one value with commas in it is written {quotes}"
    else:
        also = f"; one value that is a list is written {name}=[a,b]" if re.search("list|Any", hint) else ""
    command = shlex.join(["dbexp", "-m", override])
    return f"{override}: several values make a sweep, one run each: add -m, as in `{command}`{also}"
