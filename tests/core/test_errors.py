"""What messages share: first lines, likely meanings, lists, counts and sizes."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dbexp.core.errors import ConfigError, byte_size, count, did_you_mean, first_line, listed


def test_problems_stay_apart_on_the_way_from_a_worker() -> None:
    error = pickle.loads(pickle.dumps(ConfigError(["first", "second"])))
    assert error.problems == ("first", "second")


@pytest.mark.parametrize(
    ("error", "typed", "line"),
    [
        (ValueError("\n first\nsecond"), False, "first"),
        (ValueError("\n first\nsecond"), True, "ValueError: first"),
        (ValueError(), False, "ValueError"),
        (ValueError(" "), True, "ValueError"),
        ("first\nsecond", False, "first"),
        ("", False, "no reason is on record"),
        (None, False, "no reason is on record"),
    ],
)
def test_first_line(error: BaseException | str | None, typed: bool, line: str) -> None:
    assert first_line(error, typed=typed) == line


@pytest.mark.parametrize(
    ("says", "line"),
    [
        (  # numpy
            "This file contains pickled (object) data. If you trust the file you can load it unsafely using the "
            "`allow_pickle=` keyword argument or `pickle.load()`.",
            "This file contains pickled (object) data.",
        ),
        ("Object arrays cannot be loaded when allow_pickle=False", "it cannot be loaded safely"),
        (  # torch
            "Weights only load failed. This file can still be loaded, to do so you have two options, \x1b[1mdo those "
            "steps only if you trust the source of the checkpoint\x1b[0m. \n\t(1) ...",
            "Weights only load failed.",
        ),
        (  # transformers
            "Loading /x requires you to execute the configuration file in that repo on your local machine. Make sure "
            "you have read the code there to avoid malicious use, then set the option `trust_remote_code=True` to "
            "remove this error.",
            "Loading /x requires you to execute the configuration file in that repo on your local machine.",
        ),
        (
            "no file named a.safetensors found in v1.0. Try again.",
            "no file named a.safetensors found in v1.0. Try again.",
        ),
    ],
)
def test_advice_to_load_unsafely_is_not_passed_on(says: str, line: str) -> None:
    assert first_line(ValueError(says)) == line


def test_what_the_libraries_say_today(tmp_path: Path) -> None:
    """Advice of the installed releases, not of those that the sentences above were copied from."""
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    torch.save(Path("a path"), tmp_path / "a.pt")
    (tmp_path / "b.npy").write_bytes(pickle.dumps({}))
    loads: dict[str, Callable[[Path], object]] = {
        "a.npy": lambda path: np.load(path, allow_pickle=False),
        "b.npy": lambda path: np.load(path, allow_pickle=False),
        "a.pt": lambda path: torch.load(path, weights_only=True),
    }
    for name, load in loads.items():
        with pytest.raises(Exception) as caught:
            load(tmp_path / name)
        assert not re.search("allow_pickle|weights_only|unsafe|trust", first_line(caught.value)), name


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("lora.rnak", "; did you mean lora.rank?"),
        ("rank", "; did you mean lora.rank?"),
        ("dog", "; did you mean storybook/dog?"),
        ("lora.steps", "; did you mean prior.steps or train.steps?"),
        ("something", ""),
    ],
)
def test_did_you_mean(word: str, hint: str) -> None:
    assert did_you_mean(word, ["train.steps", "lora.rank", "prior.steps", "storybook/dog"]) == hint


@pytest.mark.parametrize(
    ("words", "most", "text"),
    [
        ([], None, ""),
        (["a"], None, "a"),
        (["a", "b"], 2, "a and b"),
        (["a", "b", "c"], None, "a, b and c"),
        (["a", "b", "c"], 2, "a, b and 1 more"),
    ],
)
def test_listed(words: list[str], most: int | None, text: str) -> None:
    assert listed(words, most) == text


def test_count() -> None:
    assert [count(1, "run"), count(2000, "run"), count(0, "entry", "entries")] == ["1 run", "2,000 runs", "0 entries"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (5000, "5.0 kB"), (1_500_000_000, "1.5 GB"), (10**16, "10000.0 TB")],
)
def test_byte_size(number: int, text: str) -> None:
    assert byte_size(number) == text
