"""The records of a run on disk: everything an upload needs, wherever the folder is."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dbexp import tracking
from dbexp.core.errors import ConfigError
from dbexp.runs.folder import RunFolder
from dbexp.tracking import content
from dbexp.tracking.records import TIME, Records, RunRecord, find
from tests.tracking.runs import KEY, ROWS, config, evaluate

RECORD = RunRecord("abc", "rank=4", "job", "dbexp", None, "10-00-00", ("dog3",), "dbexp lora.rank=4", {"lora.rank": 4})


def finished(folder: Path) -> Records:
    """The records of a run that ended well."""
    records = Records(folder)
    records.begin(RECORD)
    records.append(ROWS[:3])
    evaluate(folder)
    records.write(replace(RECORD, exit_code=0))
    return records


def test_a_moved_folder_has_its_pictures_and_its_lora(tmp_path: Path) -> None:
    finished(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    run = Records(tmp_path / "moved").result()
    assert run is not None and run.report is not None
    assert len(run.report.images) == 8
    assert all((run.folder / image.path).is_file() for image in run.report.images)
    assert (RunFolder(run.folder).contact_sheet.is_file(), RunFolder(run.folder).lora.is_file()) == (True, True)
    assert str(tmp_path / "run") not in "".join(
        path.read_text() for path in (tmp_path / "moved" / "tracking").iterdir()
    )


def test_history_is_in_order_each_step_once_and_survives_a_torn_line(tmp_path: Path) -> None:
    records = finished(tmp_path)
    records.append([{"step": 2, "loss": 9.0}])
    with (records.path / "history.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    rows = records.history()
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 9.0), (3, 1 / 3)]
    assert all(row[TIME] > 1.7e9 for row in rows)


def test_what_the_runs_own_history_has_is_not_kept_twice(tmp_path: Path) -> None:
    records = finished(tmp_path)
    before = records.history()
    lines = [{**ROWS[0]}, {**ROWS[1], "loss": 9.0}]  # the second is of another training, in the same folder
    RunFolder(tmp_path).history.write_text("".join(json.dumps(row) + "\n" for row in lines))
    records.condense()
    assert records.history() == before
    lines = [json.loads(line) for line in (records.path / "history.jsonl").read_text().splitlines()]
    assert [set(row) for row in lines] == [{TIME, "step"}, {TIME, *ROWS[1]}, {TIME, *ROWS[2]}]


def test_records_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    records = finished(tmp_path)  # its history was written once more in full, its report in a file of its own
    (records.path / "result.json").write_text('{"report": {}, "contact_sheet": null, "lora": "train/lora.safetensors"}')
    RunFolder(tmp_path).history.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    run = records.result()
    assert run is not None and run.value("dino") == 0.5
    assert [row["loss"] for row in records.history()] == [row["loss"] for row in ROWS[:3]]


def test_a_mark_holds_until_anything_changes(tmp_path: Path) -> None:
    records = finished(tmp_path)
    assert not records.synced()
    records.mark_synced("https://example.org/run")
    assert records.synced()
    (tmp_path / "train" / "lora.safetensors").write_bytes(b"others")
    assert not records.synced()
    records.mark_synced("https://example.org/run")
    (tmp_path / "result.json").unlink()
    assert not records.synced() and records.result() is None
    records.mark_synced("https://example.org/run")
    records.append(ROWS[3:4])
    assert not records.synced()


def test_a_repeated_job_keeps_its_id_and_nothing_else_of_its_earlier_attempt(tmp_path: Path) -> None:
    finished(tmp_path)
    again = Records(tmp_path).begin(
        replace(RECORD, id="new", name="another name", config={"lora.rank": 4, "store": "x"})
    )
    assert again.id == "abc"
    assert Records(tmp_path).history() == []


@pytest.mark.parametrize("other", [{"config": {"lora.rank": 8}}, {"project": "paper"}, {"entity": "team"}])
def test_another_job_does_not(tmp_path: Path, other: dict[str, Any]) -> None:
    finished(tmp_path)
    assert Records(tmp_path).begin(replace(RECORD, id="new", **other)).id == "new"


def test_a_damaged_record_is_begun_anew(tmp_path: Path) -> None:
    records = finished(tmp_path)
    (records.path / "run.json").write_text('{"id": "abc"')
    assert records.run() is None
    assert records.begin(replace(RECORD, id="new")).id == "new"


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Records(tmp_path).lock() as first, Records(tmp_path).lock() as second:
        assert (first, second) == (True, False)
    with Records(tmp_path).lock() as third:
        assert third


def test_runs_and_sweeps_are_found_below_a_folder(tmp_path: Path) -> None:
    for name in ("b/1", "b/0", "b", "a"):
        Records(tmp_path / name).begin(RECORD)
    assert [records.folder.relative_to(tmp_path).as_posix() for records in find(tmp_path)] == ["a", "b/0", "b/1", "b"]


# ------------------------------------------------------------------------------------------------- what cannot be sent


def test_nothing_to_upload_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no tracked runs; give the folder of a run or of a sweep"):
        tracking.sync(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        tracking.sync(tmp_path / "none")


def test_an_upload_without_a_login_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path)
    monkeypatch.setattr(tracking.session, "login_problem", lambda: "there is no W&B login on this machine")
    with pytest.raises(ConfigError, match="cannot upload: there is no W&B login"):
        tracking.sync(tmp_path)


def test_a_run_that_is_going_on_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = finished(tmp_path)
    monkeypatch.setattr(tracking.session, "login_problem", lambda: None)
    with records.lock():
        synced = tracking.sync(tmp_path)
    assert synced.failed == {tmp_path: "Incomplete: it is still running, or another process uploads it"}


def test_what_is_complete_needs_no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path).mark_synced("https://example.org/run")
    monkeypatch.setattr(tracking.session, "login_problem", lambda: pytest.fail("asked"))
    assert tracking.sync(tmp_path) == tracking.Synced({}, (tmp_path,), {})


# ----------------------------------------------------------------------------------------- when W&B is of no use at all


def test_the_records_are_complete_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking.session, "open_run", lambda *_: 1 / 0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with (
        pytest.raises(RuntimeError),
        tracking.start(config(), folder=tmp_path, name="run", group=None, overrides=["seed=1"]) as tracker,
    ):
        tracker.train(ROWS[:2])
        evaluate(tmp_path)
        tracker.result()
        raise RuntimeError("two\nlines")
    records = Records(tmp_path)
    run = records.run()
    assert run is not None
    assert (run.exit_code, run.error, run.notes) == (1, "RuntimeError: two", "dbexp seed=1")
    assert len(records.history()) == 2
    assert records.result() is not None
    assert KEY not in json.dumps([path.read_text() for path in records.path.iterdir()])


@pytest.mark.parametrize("name", ["run.json", "history.jsonl", "summary.json", "synced.json"])
@pytest.mark.parametrize("kind", ["fifo", "link", "deep"])
def test_a_record_that_is_no_file_of_the_folder_is_none(tmp_path: Path, name: str, kind: str) -> None:
    records = finished(tmp_path / "run")
    path = records.path / name
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "private.json").write_text('{"step": 1, "secret": 2.0, "signature": "x"}')
        path.symlink_to(tmp_path / "private.json")
    else:
        path.write_text("[" * 100_000)
    assert records.run() == (None if name == "run.json" else replace(RECORD, exit_code=0))
    assert records.history() == [] or name != "history.jsonl"
    assert records.summary() is None
    assert not records.synced()


@pytest.mark.parametrize("change", [{"id": "../../x"}, {"id": 5}, {"project": None}, {"tags": [1]}, {"config": 3}])
def test_a_record_whose_values_are_of_other_types_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    records = finished(tmp_path)
    path = records.path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert records.run() is None and records.offline_files() == []


def test_records_are_found_however_deep_they_lie(tmp_path: Path) -> None:
    deep = [finished(tmp_path / "a" / "b=1" / "c" / str(number)).folder for number in range(2)]
    assert [records.folder for records in find(tmp_path)] == deep
    assert [records.folder for records in find(tmp_path / "a")] == deep


def test_names_are_as_long_as_the_dashboard_takes_them(tmp_path: Path) -> None:
    cfg = config()
    cfg.dataset.name, cfg.model.name = "x" * 200, "y" * 200
    with tracking.start(cfg, folder=tmp_path, name="n", group="g" * 300):
        pass
    record = Records(tmp_path).run()
    assert record is not None and record.group is not None and len(record.group) == 128
    assert all(len(tag) <= 64 for tag in record.tags)


def test_an_artifacts_name_is_one_and_differs_where_words_do(tmp_path: Path) -> None:
    run = finished(tmp_path).result()
    assert run is not None and run.report is not None
    report, lora = run.report, RunFolder(run.folder).lora
    names = {
        text: content.lora_artifact(
            {"dataset.name": text, "model.name": "sd15", "dataset.token": "", "dataset.class_noun": ""}, report, lora
        ).name
        for text in ("storybook/dog", "x" * 200, "x" * 201, "фото", "мама")
    }
    assert names["storybook/dog"] == "lora-storybook-dog-sd15"
    assert len(set(names.values())) == 5
    assert all(len(name) <= 128 and re.fullmatch(r"[a-zA-Z0-9_.-]+", name) for name in names.values())
