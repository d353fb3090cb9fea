"""The command `dbexp-compare`: what it refuses, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbexp.compare import command
from tests.compare import sweeps


def refusal(*arguments: str) -> str:
    """What the command says when it ends with status 1, without a traceback."""
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert isinstance(error.value.code, str)
    return error.value.code


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    message = refusal("--prune-to-size", "3")
    assert message.startswith("dbexp-compare: 2 problems\n  which sweep?") and "say --store too" in message
    assert "--prune-older-than DAYS or --prune-to-size GB" in refusal(str(tmp_path), "--dry-run")
    assert refusal(str(tmp_path / "nowhere")).startswith(f"dbexp-compare: {tmp_path / 'nowhere'}: is no folder; give")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path / "sweep", {"lora.rank": (4,)}, each=1, side=8)
    (tmp_path / "file").touch()
    assert "choose another place with --output FOLDER" in refusal(
        str(tmp_path / "sweep"), "--output", str(tmp_path / "file" / "x")
    )


LONG, NUL = "x" * 300, "a\0b"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((LONG,), "has a name of more than 255 bytes"),
        ((NUL,), r"'a\x00b': has a NUL character"),
        (("\udce4",), r"'\udce4': is no text in UTF-8"),
        (("s", "--output", f"{LONG}/y"), "--output=xxx"),
        (("s", "--output", NUL), r"--output='a\x00b': has a NUL character"),
        (("--store", __file__), f"--store={__file__}: is a file; give the folder of a store"),
        (("--store", LONG), "--store=xxx"),
        (("--store", "~nobody-has-this-name"), "there is no user nobody-has-this-name"),
        (("--store", "--prune-to-size", "x"), "--prune-to-size=x: must be a number"),
        (("--store", "--prune-to-size", "nan"), "--prune-to-size=nan: must be at least 0"),
        (("--store", "--prune-to-size", "1e400"), "--prune-to-size=1e400: must be at least 0"),
        (("--store", "--prune-to-size=-1"), "--prune-to-size=-1: must be at least 0"),
        (("--store", "--prune-older-than", "1e20"), "--prune-older-than=1e20: must be at most 1,000,000,000"),
        (("--store", "--prune-older-than", "1" * 5000), "--prune-older-than=111"),
        (("s", "--objective", "${nowhere}"), "s: "),
    ],
)
def test_bad_values_are_one_message_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(*words)
    assert says in message
    assert all(line.isprintable() and len(line) < 700 for line in message.splitlines())
    assert not list(tmp_path.iterdir())


def test_several_sweeps_have_runs_of_different_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, rank in (("first", 4), ("second", 8)):
        sweeps.sweep(tmp_path / name, {"lora.rank": (rank,)}, each=1, side=8)
    command.main([str(tmp_path / "first"), str(tmp_path / "second"), "--output", str(tmp_path / "both")])
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith(("A0", "B0"))]
    assert sorted(set(rows)) == ["A0:", "B0:"]
    assert (tmp_path / "both" / "report.html").is_file()
