"""docs/intervals.md: its lines compute the intervals that the program gives, of the reference sweep and of others."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pandas
import pytest

import dbexp
from dbexp.compare.numbers import interval
from dbexp.compare.write import write_comparison
from tests.compare import sweeps

ROOT = Path(dbexp.__file__).parents[1]
REFERENCE = ROOT / "multirun" / "reference"
TEXT = (ROOT / "docs" / "intervals.md").read_text(encoding="utf-8")
ONE_PARAMETER, IN_SHORT, ONE_RUN, WHOLE_SWEEP = re.findall(
    r"^```python\n(.*?)^```$", TEXT, flags=re.DOTALL | re.MULTILINE
)


def printed(code: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    """The words of every line that the code prints, with the pictures of another folder."""
    assert "multirun/reference/pictures.csv" in code
    exec(code.replace("multirun/reference", folder.as_posix()), {})
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_ten_lines_are_ten() -> None:
    lines = [line for line in ONE_PARAMETER.splitlines() if line and not line.startswith(("import", "from", "print"))]
    assert len(lines) == 10


def test_ten_lines_give_what_the_function_gives(capsys: pytest.CaptureFixture[str]) -> None:
    ((value, low, high),) = printed(ONE_PARAMETER, REFERENCE, capsys)
    pictures = pandas.read_csv(REFERENCE / "pictures.csv").rename(columns={"dino": "value"})
    context = pictures[pictures["prior.weight"] == 1]
    estimate = dbexp.effect(context[["value", "lora.rank", "seed", "prompt", "image"]], "lora.rank", 4, 16)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx([float(value), float(low), float(high)])


def test_ten_lines_give_what_the_page_of_a_sweep_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = write_comparison([sweeps.sweep(tmp_path, {"lora.rank": (4, 16), "seed": (1, 2, 3)}, side=8)])
    ((_, low, high),) = printed(
        re.sub(r"^pictures = pictures\[.*\n", "", ONE_PARAMETER, flags=re.MULTILINE), tmp_path, capsys
    )
    assert interval("dino", float(low), float(high)) in files.page.read_text(encoding="utf-8")


def test_the_intervals_of_runs_are_computed_again(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["job"]: row for row in csv.DictReader((REFERENCE / "results.csv").read_text("utf-8").splitlines())}
    lines = printed(ONE_RUN, REFERENCE, capsys)
    assert len(lines) == len(rows) == 12
    for job, *numbers in lines:
        expected = [float(rows[job][name]) for name in ("dino", "dino_low", "dino_high")]
        assert [float(number) for number in numbers] == pytest.approx(expected, rel=1e-6)


def test_the_reference_sweep_is_computed_again(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader((REFERENCE / "effects.csv").read_text(encoding="utf-8").splitlines()))
    expected = {row["parameter"]: row for row in rows if (row["kind"], row["metric"]) == ("effect", "dino")}
    lines = printed(WHOLE_SWEEP, REFERENCE, capsys)
    assert len(lines) == len(expected) == 2
    for parameter, *numbers in lines:
        assert [float(expected[parameter][name]) for name in ("value", "low", "high")] == pytest.approx(
            [float(number) for number in numbers], rel=1e-6
        )
        pictures = pandas.read_csv(REFERENCE / "pictures.csv").rename(columns={"dino": "value"})
        keep = ["value", *expected, "seed", "prompt", "image"]
        estimate = dbexp.effect(pictures[keep], parameter, expected[parameter]["from"], expected[parameter]["to"])
        assert (estimate.low, estimate.high) == pytest.approx([float(number) for number in numbers[1:]], rel=1e-6)


def test_the_function_is_called_as_the_page_shows(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path, {"lora.rank": (4, 16), "seed": (1, 2, 3)}, side=8)
    exec(IN_SHORT.replace("multirun/DATE/TIME", tmp_path.as_posix()), {})


def test_the_first_table_of_the_readme_is_that_of_the_reference_sweep() -> None:
    first = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Your own photographs")[0]
    numbers = re.findall(r"[+−]\d\.\d+ \[[^]]*\]", first)
    text = (REFERENCE / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert len(numbers) == 8 and [number for number in numbers if number not in text] == []
