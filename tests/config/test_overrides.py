"""What is typed after `dbexp`."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from dbexp.config.overrides import beyond_hydra, in_quotes, jobs, parse, samples, switches_first, without_runs


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


def test_lists_of_a_sweep_stay_apart() -> None:
    (word,) = shlex.split(in_quotes("sample.prompts=[a {token}, ä], [a dog in [x]]") or "")
    assert word == 'sample.prompts=["a {token}","ä"],["a dog in [x]"]'
    read = parse(word)
    assert read and read.is_sweep_override() and len(list(read.sweep_string_iterator())) == 2


def test_brackets_within_a_list_do_not_end_it() -> None:
    (word,) = shlex.split(in_quotes("sample.prompts=[a [x], [y] ä]") or "")
    read = parse(word)
    assert read and read.value() == ["a [x]", "[y] ä"]


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


GROUPS = {"lora": ["attention"], "experiment": ["a", "b"], "evaluate/more": ["c"]}


@pytest.mark.parametrize("word", ["lora=attention", "experiment=a", "experiment=[a,'b']", "evaluate/more=[]"])
def test_options_are_names(word: str) -> None:
    assert beyond_hydra([word], GROUPS) == []


@pytest.mark.parametrize(
    "word",
    ["lora=null", "lora=[attention]", "experiment=null", "experiment=[null]", "experiment=5", "evaluate/more=[[c]]"],
)
def test_what_is_no_name_of_an_option_is_refused(word: str) -> None:
    (problem,) = beyond_hydra([word], GROUPS)
    assert problem.startswith(f"{word}: ") and "is a group, and its value must be a string: " in problem


@pytest.fixture
def loader(composed: Callable[..., DictConfig]) -> ConfigLoader:
    """Of a Hydra that knows dbexp's options."""
    return GlobalHydra.instance().config_loader()


SWEPT = [
    ["lora.rank=2,4", "seed=range(1,4)", "store=null"],
    ["lora.rank=2,4", "train.lr=1e-4", "lora.rank=8"],
    ["lora=glob(*)", "sample.prompts=['a b',c],[d]", "+x={a:1}", "tracking.tags=[a,b]"],
    ["~experiment", "dataset.prompt='a {token}, here'", "lora.rank=sort(4,2,3)"],
]


@pytest.mark.parametrize("words", SWEPT, ids=" ".join)
def test_jobs_are_those_of_hydras_sweeper(loader: ConfigLoader, words: list[str]) -> None:
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
    assert [jobs(words, loader)] == BasicSweeper.split_arguments(parsed, None)


def test_few_jobs_of_a_search_are_all_looked_at(loader: ConfigLoader) -> None:
    words = ["lora.rank=choice(4,8)", "train.lr=tag(log,interval(1e-5,1e-3))", "seed=3"]
    assert samples(words, loader) == [
        [f"lora.rank={rank}", f"train.lr={lr}", "seed=3"] for rank in (4, 8) for lr in ("1e-05", "0.001")
    ]


def test_of_many_jobs_of_a_search_each_value_is_looked_at(loader: ConfigLoader) -> None:
    words = ["lora.rank=range(1,41)", "seed=1,2,3", "lora=glob(*)"]
    looked = samples(words, loader)
    assert len(looked) == 1 + 39 + 2 + len(jobs(["lora=glob(*)"], loader)) - 1
    assert {job[0] for job in looked} == {f"lora.rank={rank}" for rank in range(1, 41)}
    assert {job[1] for job in looked} == {"seed=1", "seed=2", "seed=3"}
