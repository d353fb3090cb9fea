"""Every field of every command against every bad value of its kind: refused in words, all at once, or right."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from dbexp.compare.settings import CompareConfig
from dbexp.compare.settings import check as check_compare
from dbexp.config import check, words
from dbexp.config.schema import Config
from dbexp.config.typed import type_hints
from dbexp.config.values import plain, structured
from dbexp.core.errors import ConfigError, shown
from dbexp.estimate.settings import EstimateConfig
from dbexp.estimate.settings import check as check_estimate
from dbexp.export.settings import ExportConfig
from dbexp.export.settings import check as check_export
from dbexp.generate.settings import GenerateConfig
from dbexp.generate.settings import check as check_generate
from tests.config.cases import Case, of_fields
from tests.config.test_check import good

LONGEST = 700


def judge(cases: Iterable[Case], attempt: Callable[[Case], object]) -> int:
    """Try all cases and hold what is said of each to the rules of messages; how many were refused."""
    refused, wrong = 0, list[tuple[str, object]]()
    for case in cases:
        try:
            attempt(case)
        except ConfigError as error:
            refused += 1
            told = [problem for problem in error.problems if case.field.split(".")[-1] in problem]
            sound = all(problem.isprintable() and len(problem) <= LONGEST for problem in error.problems)
            if not told or not sound:
                wrong.append((case.id, error.problems))
        except Exception as error:
            wrong.append((case.id, repr(error)[:200]))
        else:
            if case.refused:
                wrong.append((case.id, "passes"))
    assert not wrong, "\n".join(f"{name}: {what}" for name, what in wrong)
    return refused


_ALL: tuple[type, ...] = (Config, GenerateConfig, ExportConfig, CompareConfig, EstimateConfig)
CASES: dict[type, list[Case]] = {cls: list(of_fields(cls)) for cls in _ALL}


@pytest.mark.parametrize("group", sorted({case.field.split(".")[0] for case in CASES[Config]}))
def test_a_config(group: str) -> None:
    usual = plain(good())

    def attempt(case: Case) -> object:
        values = usual | {group: copy.deepcopy(usual[group])}
        node: Any = values
        *parents, last = case.field.split(".")
        for name in parents:
            node = node[name]
        node[last] = case.value
        # to look for interpolations takes Hydra's library ten times as long as all the rest
        literal = "nowhere}" not in str(case.value)[-12:]
        return check.check(structured(values, literal=literal))

    cases = [case for case in CASES[Config] if case.field.split(".")[0] == group]
    refused = judge(cases, attempt)
    assert refused >= sum(case.refused for case in cases)
    print(f"{group}: {len(cases)} cases, {refused} refused")


@pytest.mark.parametrize(
    ("cls", "rules", "given"),
    [
        (GenerateConfig, check_generate, {"run": "r", "prompt": "a {token}"}),
        (ExportConfig, check_export, {"run": "r"}),
        (CompareConfig, check_compare, {"sweep": "s"}),
        (EstimateConfig, check_estimate, {}),
    ],
    ids=["generate", "export", "compare", "estimate"],
)
def test_a_command_of_words(cls: type, rules: Callable[[Any], None], given: dict[str, str]) -> None:
    def attempt(case: Case) -> None:
        rules(words.parse(cls, typed_words(cls, given, case), ""))

    cases = [case for case in CASES[cls] if can_be_typed(cls, case)]
    refused = judge(cases, attempt)
    print(f"{cls.__name__}: {len(cases)} cases, {refused} refused")
    assert refused >= sum(case.refused for case in cases)


def typed_words(cls: type, given: dict[str, str], case: Case) -> list[str]:
    """A command line of words with the value of a case among others."""
    typed = {**given, case.field: _typed(case.value, "list" in str(type_hints(cls)[case.field]))}
    return [f"{name}={text}" for name, text in typed.items()]


def can_be_typed(cls: type, case: Case) -> bool:
    """Whether a value is no text already: those are taken as they stand, brackets, null, dollars and all."""
    value = case.value[0] if isinstance(case.value, list) else case.value
    of_texts = "str" in str(type_hints(cls)[case.field])
    return not of_texts or (isinstance(value, str) and not value.startswith("${") and value not in ("a", "5"))


def _typed(value: Any, of_many: bool) -> str:
    if isinstance(value, list):
        alone = of_many and not isinstance(value[0], list)
        return _typed(value[0], False) if alone else str(value)
    return shown(value, 20_000) if value is None or isinstance(value, bool) else str(value)
