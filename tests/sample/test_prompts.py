"""The two lists of the paper, and prompts of one's own."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from dbexp.config.schema import DatasetConfig
from dbexp.core.errors import ConfigError
from dbexp.sample import prompts

DOG = DatasetConfig(name="d", token="sks", class_noun="dog", live=True)
TEAPOT = DatasetConfig(name="t", token="sks", class_noun="teapot", live=False)
PAPER = Path(__file__).parents[3] / "shared" / "data" / "dreambooth" / "prompts_and_classes.txt"


def texts(source: object, dataset: DatasetConfig = DOG) -> list[str]:
    return [prompt.text for prompt in prompts.choose(source, dataset)]


def test_the_lists_have_25_prompts_in_the_papers_groups() -> None:
    live = Counter(prompt.group for prompt in prompts.choose("live", DOG))
    objects = Counter(prompt.group for prompt in prompts.choose("object", DOG))
    assert live == {"recontextualisation": 10, "accessory": 10, "property": 5}
    assert objects == {"recontextualisation": 20, "property": 5}
    assert len(set(prompts.LIVE)) == len(set(prompts.OBJECT)) == 25


@pytest.mark.skipif(not PAPER.is_file(), reason="the dataset's own prompt file is not beside the repository")
def test_every_template_is_the_datasets_own() -> None:
    objects, live = PAPER.read_text().split("Live Subject Prompts")
    for text, listed in ((objects, prompts.OBJECT), (live, prompts.LIVE)):
        genuine = [quoted.format("{token}", "{class}") for quoted in re.findall(r"^'(.*)'\.format", text, re.MULTILINE)]
        assert tuple(genuine) == listed


def test_auto_follows_the_subject_and_fills_in_token_and_class() -> None:
    assert texts("auto", DOG)[10] == "a sks dog wearing a red hat"
    assert texts("auto", TEAPOT)[10] == "a sks teapot with a wheat field in the background"
    assert texts("live", TEAPOT)[10] == "a sks teapot wearing a red hat"
    assert texts("object", DOG)[-1] == "a cube shaped sks dog"


def test_own_prompts_keep_their_order_and_are_grouped_only_when_they_are_the_papers() -> None:
    chosen = prompts.choose(["a {token} {class} on the moon", "a red {token} {class}"], DOG)
    assert [(prompt.text, prompt.group) for prompt in chosen] == [
        ("a sks dog on the moon", "other"),
        ("a red sks dog", "property"),
    ]
    assert chosen[0].template == "a {token} {class} on the moon"


def test_a_prompt_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    text = "\ufeff# my prompts\n\n  a {token} {class} in Zürich \r\n\t\n#a {token}\nprice tag #3 on a {token} {class}\n"
    file.write_text(text, encoding="utf-8")
    assert texts(str(file)) == ["a sks dog in Zürich", "price tag #3 on a sks dog"]


@pytest.mark.parametrize("character", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_prompt_file_is_split_at_line_ends_alone(tmp_path: Path, character: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"a {{token}}{character} dog\r\nb {{token}}\rc {{token}}\n".encode())
    assert texts(str(file)) == [f"a sks{character} dog", "b sks", "c sks"]


def test_a_file_is_found_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("a {token}\n")
    assert texts("~/p.txt") == ["a sks"]


def test_doubled_braces_are_literal() -> None:
    assert texts(["a {token} {{dog}}"]) == ["a sks {dog}"]


def test_every_problem_of_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    lines = ["a {token} {class}", "a {name} dog", "a {token", "a {token!r}", "a {token.__class__}", "a {}", "a sks dog"]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as caught:
        prompts.choose(str(file), DOG)
    problems = caught.value.problems
    assert [re.findall(r"line (\d+)", problem)[0] for problem in problems] == list("234567")
    assert "{name}: only {token} and {class} may stand in braces" in problems[0]
    assert "a brace too many or too few" in problems[1]
    assert "twice, first in" in problems[-1] and "line 1" in problems[-1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.txt", r"no/such/file.txt: there is no such text file; give one, or auto, live, object"),
        ("", r"there is no such text file"),
        ([], r"must hold at least one prompt"),
        (["a {token}", "  "], r"entry 2: '  ' must be a text that is not empty"),
        (["a {token}", 7], r"entry 2: 7 must be a text"),
        (7, r"sample.prompts=7: must be auto, live, object, a text file, or a list"),
        (None, r"sample.prompts=None: must be"),
    ],
)
def test_what_is_no_list_of_prompts_is_refused(source: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prompts.choose(source, DOG)


def test_a_file_without_prompts_or_of_another_encoding_is_refused(tmp_path: Path) -> None:
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("# nothing yet\n\n")
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"empty.txt: the file holds no prompt"):
        prompts.choose(str(empty), DOG)
    with pytest.raises(ConfigError, match=r"binary.txt: cannot be read as UTF-8 text"):
        prompts.choose(str(binary), DOG)
    with pytest.raises(ConfigError, match="there is no such text file"):
        prompts.choose(str(tmp_path), DOG)
