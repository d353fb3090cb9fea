"""What is typed after `dbexp`: switches and overrides, in Hydra's grammar."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, RangeSweep
from hydra.errors import OverrideParseException

from dbexp.core.errors import listed, shown

_MOST_SAMPLES = 32
"""Jobs of a search that are looked at before it starts, at least if there are more."""
_LONG_NUMBER = re.compile(r"\d{4300,}")
_LISTS = re.compile(r"(?<=\])\s*,\s*(?=\[)")
"""Between the lists of a sweep."""
SEVERAL = ("experiment", "evaluate/more")
"""Groups of which a list of options may be chosen."""
# switches of Hydra that take the next word as their value
_WITH_VALUE = {
    *("--cfg", "-c", "--info", "-i", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn"),
    *("--config-dir", "-cd", "--experimental-rerun"),
}


def switches_first(words: Sequence[str]) -> list[str]:
    """The same command line with its switches before its overrides: Hydra reads no overrides on both sides of one.

    Args:
        words: without the program's name.
    """
    switches: list[str] = []
    overrides: list[str] = []
    waiting = False  # for the value of a switch
    for word in words:
        is_switch = word.startswith("-")
        (switches if is_switch or (waiting and "=" not in word) else overrides).append(word)
        waiting = is_switch and word in _WITH_VALUE
    return [*switches, *overrides]


def switch_values(words: Sequence[str], *names: str) -> list[str]:
    """The values of a switch on a command line, as `--name value` or `--name=value`.

    Args:
        words: without the program's name.
        names: of the switch.
    """
    after = [value for word, value in itertools.pairwise(words) if word in names]
    return after + [value for word in words for name, sign, value in [word.partition("=")] if sign and name in names]


def in_quotes(override: str) -> str | None:
    """An override that Hydra's grammar does not read, with quotes around its value, or around each value of a list.

    Returns:
        As one types it in a shell; None where quotes do not help.
    """
    name, _, value = override.partition("=")
    lists = _LISTS.split(value)
    if len(lists) < 2 or not all(text.startswith("[") and text.count("[") == text.count("]") for text in lists):
        lists = [value]
    quoted = [_quoted(name, text) for text in lists]
    return None if None in quoted else shlex.quote(f"{name}={','.join(filter(None, quoted))}")


def _quoted(name: str, value: str) -> str | None:
    """A value, or each value of a list, in quotes; None where Hydra does not read the same then."""
    if value.startswith("[") and value.endswith("]"):
        values = [part.strip() for part in value[1:].removesuffix("]").split(",")]
        written = f"[{','.join(_quote(part) for part in values)}]"
        expected: object = [_bare(part) for part in values]
    else:
        written, expected = _quote(value), _bare(value)
    parsed = parse(f"{name}={written}")
    return written if parsed and parsed.value() == expected else None


def parse(text: str, loader: ConfigLoader | None = None) -> Override | None:
    """An override as Hydra reads it; None where its grammar does not allow it.

    Args:
        loader: that the values of a pattern come from.
    """
    try:
        override: Override = OverridesParser.create(config_loader=loader).parse_overrides([text])[0]
    except OverrideParseException:
        return None
    return override


def _bare(value: str) -> str:
    """A value without the quotes that it has already."""
    whole = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if whole else value


def _quote(value: str) -> str:
    text = re.sub(r'(\\*)"', r'\1\1\\"', _bare(value))  # backslashes before a quote count double
    doubled = re.sub(r"\\+$", lambda end: end[0] * 2, text)  # as they do before the closing one
    return f'"{doubled}"'


def jobs(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[list[str]]:
    """The overrides of each job of a sweep, in the order in which Hydra's own sweeper runs them.

    Args:
        overrides: of the sweep, which Hydra's grammar reads; a later one of a name stands for those before it.
        loader: knows the options that a pattern matches; None: patterns stay as they are.
    """
    return [list(job) for job in itertools.product(*_choices(overrides, loader).values())]


def samples(overrides: Sequence[str], loader: ConfigLoader) -> list[list[str]]:
    """The overrides of jobs that stand for those of a search: each value that a parameter may have is in one of them,
    of an interval both ends. Where few combinations are possible these are all of them.

    Args:
        overrides: of the search.
        loader: knows the options that a pattern matches.
    """
    choices = _choices(overrides, loader)
    if math.prod(map(len, choices.values())) <= _MOST_SAMPLES:
        return [list(job) for job in itertools.product(*choices.values())]
    usual = {name: values[0] for name, values in choices.items()}
    changes = [{name: value} for name, values in choices.items() for value in values[1:]]
    return [list((usual | change).values()) for change in [{}, *changes]]


def _choices(overrides: Sequence[str], loader: ConfigLoader | None) -> dict[str, list[str]]:
    """Name -> what it is set to in a job, as overrides; those of a parameter that is not swept are one."""
    choices: dict[str, list[str]] = {}
    for text in overrides:
        override = parse(text, loader)
        if override is None:
            choices[text] = [text]
            continue
        name, value = override.get_key_element(), override.value()
        if not override.is_sweep_override():
            choices[name] = [f"{name}={override.get_value_element_as_str()}"]
        elif isinstance(value, Glob) and loader is None:
            choices[name] = [text]
        elif isinstance(value, IntervalSweep):
            choices[name] = [f"{name}={value.start}", f"{name}={value.end}"]
        else:
            choices[name] = [f"{name}={word}" for word in override.sweep_string_iterator()]
    return choices


def beyond_hydra(words: Sequence[str], options: Mapping[str, Sequence[str]]) -> list[str]:
    """What Hydra would complain of without naming it: numbers that Python does not read, and groups without an option.

    Args:
        words: of the command line.
        options: group -> names of its options.
    """
    problems = []
    for text in words:
        if digits := _LONG_NUMBER.search(text):
            problems.append(f"{shown(text, 60)}: no setting takes a number of {len(digits[0]):,} digits")
            continue
        name = text.partition("=")[0]
        if text.startswith("="):
            problems.append(f"{shown(text)}: write NAME=VALUE")
        if name not in options or (override := parse(text)) is None or override.is_sweep_override():
            continue
        value = override.value()
        names = value if name in SEVERAL and isinstance(value, list) else [value]
        if not all(isinstance(item, str | QuotedString) for item in names):
            problems.append(
                f"{shown(text)}: {name} is a group, and its value must be a string: {listed(options[name], 20)}"
            )
    return problems


def groups_among(options: Mapping[str, Sequence[str]], parameters: Iterable[str]) -> dict[str, Sequence[str]]:
    """Those of the options whose group is a parameter, or one of `SEVERAL`: for `beyond_hydra`."""
    return {name: options[name] for name in (*parameters, *SEVERAL) if name in options}


def without_runs(overrides: Sequence[str], options: Mapping[str, Sequence[str]]) -> list[str]:
    """What leaves a sweep without runs: a range without numbers, a pattern that matches no option.

    Args:
        overrides: of the sweep.
        options: group -> names of its options.
    """
    problems = []
    for text in overrides:
        override = parse(text)
        if override is None:  # Hydra says so
            continue
        value = override.value()
        if isinstance(value, RangeSweep) and not list(value.range()):
            problems.append(f"{text}: no number lies in this range, so the sweep has no runs")
        elif isinstance(value, Glob):
            group = override.key_or_group
            names = _within(group, options)
            if not value.filter(names):
                known = f"it has {', '.join(names)}" if names else "it is no group"
                problems.append(f"{text}: no option of {group} matches, so the sweep has no runs; {known}")
    return problems


def _within(group: str, options: Mapping[str, Sequence[str]]) -> list[str]:
    """Options right in a group, which may be nested in another: experiment/reference/diffusers."""
    whole = [f"{outer}/{name}" for outer, names in options.items() for name in names]
    return [name.rpartition("/")[2] for name in whole if name.rpartition("/")[0] == group]
