"""What is typed after `dbexp`."""

from __future__ import annotations

import shlex

import pytest

from dbexp.config.overrides import in_quotes, parse, switches_first, without_runs


@pytest.mark.parametrize(
    ("words", "ordered"),
    [
        ("a=1 -m b=2", "-m a=1 b=2"),
        ("a=1 --config-dir mine b=2 -m", "--config-dir mine -m a=1 b=2"),
        ("a=1 --config-dir=mine b=2", "--config-dir=mine a=1 b=2"),
        ("a=1 -i searchpath", "-i searchpath a=1"),
        ("a=1 --info b=2", "--info a=1 b=2"),
        ("a=1 ~b +c=3", "a=1 ~b +c=3"),
        ("", ""),
    ],
)
def test_switches_come_first(words: str, ordered: str) -> None:
    assert switches_first(words.split()) == ordered.split()


@pytest.mark.parametrize(
    "value", ["фото", "a {token} dog", "it's", 'say "a"', "end\\", 'b\\"c', "a, b", "50 % $5", "'x' {y}", "a\tb(c)"]
)
def test_quotes_keep_a_value_as_it_is(value: str) -> None:
    hint = in_quotes(f"dataset.path={value}")
    assert hint is not None
    (word,) = shlex.split(hint)
    read = parse(word)
    assert read and read.value() == value


def test_values_of_a_list_are_quoted_one_by_one() -> None:
    (word,) = shlex.split(in_quotes("sample.prompts=[ä {token}, 'b c', d]") or "")
    read = parse(word)
    assert read and read.value() == ["ä {token}", "b c", "d"]


def test_where_quotes_do_not_help() -> None:
    assert in_quotes("a b=c") is None


OPTIONS = {"lora": ["attention", "linear"], "experiment": ["recipe/x", "reference/table/first", "reference/table/last"]}


@pytest.mark.parametrize(
    "override",
    [
        "lora=glob(*)",
        "lora=glob([l*,x*])",
        "lora.rank=range(1,3)",
        "lora.rank=1,2",
        "lora.rank=[",
        "train.lr=interval(0,1)",
        "experiment/reference/table=glob(*)",
    ],
)
def test_a_sweep_with_jobs(override: str) -> None:
    assert without_runs(["train.steps=1", override], OPTIONS) == []


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "lora=glob(x*)",
            "lora=glob(x*): no option of lora matches, so the sweep has no runs; it has attention, linear",
        ),
        ("lora=glob(*, exclude=*)", "no option of lora matches"),
        ("lora.rank=glob(*)", "no option of lora.rank matches, so the sweep has no runs; it is no group"),
        ("lora.rank=range(4,4)", "lora.rank=range(4,4): no number lies in this range, so the sweep has no runs"),
        ("lora.rank=range(1,5,-1)", "no number lies in this range"),
        ("experiment/reference/table=glob(x)", "it has first, last"),
    ],
)
def test_a_sweep_without_runs(override: str, says: str) -> None:
    (problem,) = without_runs([override, "train.steps=1,2"], OPTIONS)
    assert says in problem
