"""The command `dbexp-compare`: what it refuses, and how."""

from __future__ import annotations

from pathlib import Path

import pytest

from dbexp.compare import command
from dbexp.compare.settings import USAGE, CompareConfig, without_switches
from dbexp.config.words import parse
from tests.compare import sweeps


def refusal(*arguments: str) -> str:
    """What the command says when it ends with status 1, without a traceback."""
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert isinstance(error.value.code, str)
    return error.value.code


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    message = refusal("prune_to_size=3", "verify=true")
    assert message.startswith("dbexp-compare: 3 problems\n  which sweep?")
    assert "prune_to_size=3.0: say of which store too, store=FOLDER or store=default" in message
    assert "verify=true: say of which store too" in message
    assert "prune_older_than=DAYS or prune_to_size=GB" in refusal(str(tmp_path), "dry_run=true")
    assert refusal(str(tmp_path / "nowhere")).startswith(f"dbexp-compare: {tmp_path / 'nowhere'}: is no folder; give")
    assert "objektive: there is no such parameter; did you mean objective?" in refusal("s", "objektive=dino")
    assert "--outptu: there is no such parameter; did you mean output?" in refusal("s", "--outptu=x")


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    sweeps.sweep(tmp_path / "sweep", {"lora.rank": (4,)}, each=1, side=8)
    (tmp_path / "file").touch()
    assert "choose another place with output=FOLDER" in refusal(
        str(tmp_path / "sweep"), f"output={tmp_path / 'file' / 'x'}"
    )


@pytest.mark.parametrize(
    ("switches", "words"),
    [
        (["A", "--objective", "dino", "B", "--output=both"], ["A", "objective=dino", "B", "output=both"]),
        (["A", "--sync", "--open"], ["A", "sync=true", "open=true"]),
        (["--store", "--prune-to-size", "3", "--dry-run"], ["store=default", "prune_to_size=3", "dry_run=true"]),
        (["--store", "kept", "--prune-older-than=9"], ["store=kept", "prune_older_than=9"]),
        (["--store", "--verify"], ["store=default", "verify=true"]),
        (["A", "--output"], ["A", "--output"]),
        (["A", "--nonsense", "x=1"], ["A", "--nonsense", "x=1"]),
    ],
)
def test_switches_of_former_releases_are_understood(switches: list[str], words: list[str]) -> None:
    assert without_switches(switches) == words


def test_sweeps_are_given_with_their_name_or_without_it(tmp_path: Path) -> None:
    odd = tmp_path / "lr=1,rank=4"
    odd.mkdir()
    words = [str(odd), f"sweep={tmp_path}/b,{tmp_path}/c", "multirun"]
    assert parse(CompareConfig, words, USAGE, nameless="sweep").sweeps == [
        odd, tmp_path / "b", tmp_path / "c", Path("multirun"),
    ]  # fmt: skip


LONG, NUL = "x" * 300, "a\0b"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((LONG,), "has a name of more than 255 bytes"),
        ((NUL,), r"'a\x00b': has a NUL character"),
        (("\udce4",), r"'\udce4': is no text in UTF-8"),
        (("s", f"output={LONG}/y"), "output=xxx"),
        (("s", f"output={NUL}"), r"output='a\x00b': has a NUL character"),
        ((f"store={__file__}",), f"store={__file__}: is a file; give the folder of a store"),
        ((f"store={LONG}",), "store=xxx"),
        (("store=~nobody-has-this-name",), "there is no user nobody-has-this-name"),
        (("--store", "~nobody-has-this-name"), "there is no user nobody-has-this-name"),
        (("store=default", "prune_to_size=x"), "prune_to_size=x: must be"),
        (("store=default", "prune_to_size=nan"), "prune_to_size=nan: must be"),
        (("--store", "--prune-to-size", "1e400"), "prune_to_size=inf: must be"),
        (("store=default", "prune_to_size=-1"), "prune_to_size=-1.0: must be at least 0"),
        (("--store", "--prune-older-than", "1e20"), "must be at most 1,000,000,000"),
        (("store=default", f"prune_older_than={'1' * 5000}"), "prune_older_than=inf: must be"),
        (("s", "open=perhaps"), "open=perhaps: must be true or false"),
        (("s", "objective=${nowhere}"), "s: "),
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
    command.main([str(tmp_path / "first"), str(tmp_path / "second"), f"output={tmp_path / 'both'}"])
    rows = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith(("A0", "B0"))]
    assert sorted(set(rows)) == ["A0:", "B0:"]
    assert (tmp_path / "both" / "report.html").is_file()


def test_settings_are_called_in_the_table_as_in_the_sentences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sweep that leaves a parameter at its default says its value beside one that sweeps it."""
    sweeps.sweep(tmp_path / "a", {"lora.rank": (4, 8), "seed": (1, 2)}, each=1, side=8)
    sweeps.sweep(tmp_path / "b", {"lora.rank": (16,), "prior.weight": (0, 1), "seed": (1, 2)}, each=1, side=8)
    command.main([str(tmp_path / "a"), str(tmp_path / "b"), f"output={tmp_path / 'both'}"])
    _, _, below = capsys.readouterr().out.partition("mean ± standard deviation over seeds")
    table, _, sentences = below.partition("Recommendation: ")
    named = [" ".join(line.split("  ")[0].split()) for line in table.splitlines() if line.startswith("rank=")]
    assert sorted(named) == ["rank=16 weight=0", "rank=16 weight=1", "rank=4 weight=1", "rank=8 weight=1"]
    assert all(name in sentences for name in named)
