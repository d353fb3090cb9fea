"""Weights & Biases: what real offline runs hold, read back, and how they begin and end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dbexp import tracking
from dbexp.evaluate.columns import COLUMNS
from dbexp.runs.folder import RunFolder
from dbexp.tracking import summary as wandb_summary
from dbexp.tracking.records import Records
from tests.tracking.runs import (
    KEY,
    PROMPTS,
    ROWS,
    SUMMARY,
    config,
    evaluate,
    exit_code,
    history,
    inspect,
    of_type,
    run_of,
    summary,
)


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home without logins and settings, and a key in the environment that must turn up nowhere."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(home))
        patch.delenv("NETRC", raising=False)
        patch.setenv("WANDB_API_KEY", KEY)
        yield


@dataclass(frozen=True)
class Tracked:
    """A finished run with everything in it."""

    folder: Path
    records: list[dict[str, Any]]

    def table(self, name: str) -> dict[str, Any]:
        """A logged table as W&B keeps it: columns and data, pictures as the word Image."""
        (path,) = self.folder.rglob(f"media/table/tables/{name}_*.table.json")
        table: dict[str, Any] = json.loads(path.read_text())
        return table


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    folder = tmp_path_factory.mktemp("run")
    evaluate(folder, lora=b"weights" * 100)
    cfg = config()
    cfg.lora.rank = 4
    cfg.tracking.tags = ["mine", "dog3"]
    overrides = ["dataset=dog3", "lora.rank=4"]
    with tracking.start(cfg, folder=folder, name="rank=4", group="10-00-00", overrides=overrides) as tracker:
        tracker.train(ROWS[:10])
        tracker.train(ROWS[10:])
        tracker.result()
    (records,) = inspect(folder)
    return Tracked(folder, records)


# --------------------------------------------------------------------------------------- what an offline run holds


def test_the_run_is_named_grouped_and_tagged(tracked: Tracked) -> None:
    (run,) = of_type(tracked.records, "run")
    assert (run["display_name"], run["run_group"], run["project"]) == ("rank=4", "10-00-00", "dbexp")
    assert run["tags"] == ["reference/diffusers", "dog3", "random", "mine"]
    assert run["notes"] == "dbexp dataset=dog3 lora.rank=4"
    assert exit_code(tracked.records) == 0


def test_the_config_is_flat_under_hydras_names(tracked: Tracked) -> None:
    (run,) = of_type(tracked.records, "run")
    logged = run["config"]["update"]
    assert logged["lora.rank"] == 4
    assert logged["evaluate.dino.crop"] == 224
    assert logged["evaluate.dino.mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert logged["evaluate.dino.kwargs"] == {}
    assert logged["lora.alpha"] is None
    assert "lora" not in logged


def test_training_is_plotted_against_its_own_step(tracked: Tracked) -> None:
    rows = [row for row in history(tracked.records) if "train/step" in row]
    assert rows == [{f"train/{key}": pytest.approx(value) for key, value in row.items()} for row in ROWS]
    axes = {metric.get("glob_name"): metric.get("step_metric") for metric in of_type(tracked.records, "metric")}
    assert axes["train/*"] == "train/step"


def test_the_summary_has_the_columns_of_every_row(tracked: Tracked) -> None:
    values = summary(tracked.records)
    numbers = {key: value for key, value in values.items() if key.split("/")[0] in ("metrics", "base", "real")}
    assert numbers == {"metrics/dino": 0.5, "base/dino": 0.25, "real/dino": 0.75}
    assert values["label"] == "random weights"


def test_the_metric_table_has_the_run_its_interval_and_the_references(tracked: Tracked) -> None:
    table = tracked.table("metrics")
    assert table["columns"][:4] == ["row", "label", "DINO ↑", "CLIP-I ↑"]
    assert len(table["columns"]) == 2 + len(COLUMNS)
    assert {row[0]: row[2] for row in table["data"]} == {
        "rank=4": 0.5,
        "95 % from": 0.4,
        "95 % to": 0.6,
        "base model": 0.25,
        "real images": 0.75,
    }
    assert {row[1] for row in table["data"]} == {"random weights"}
    assert {row[table["columns"].index("DIV ↑")] for row in table["data"]} == {None}


def test_the_prompt_table_has_the_pictures(tracked: Tracked) -> None:
    table = tracked.table("prompts")
    assert table["columns"] == ["prompt", "group", "base model", "1", "2", "DINO ↑", "DIV ↑"]
    assert table["data"] == [
        [PROMPTS[0], "other", "Image", "Image", "Image", 0.25, None],
        [PROMPTS[1], "other", "Image", "Image", "Image", 1.25, None],
    ]


def test_pictures_are_staged_beside_the_run_and_small(tracked: Tracked) -> None:
    sizes = []
    for path in (tracked.folder / "tracking" / "data").rglob("*"):
        with suppress(OSError), Image.open(path) as picture:  # the tables lie there too
            sizes.append(picture.size)
    assert sizes == [(512, 256)] * 6
    (sheet,) = tracked.folder.rglob("media/images/pictures/contact_sheet_*.jpg")
    with Image.open(sheet) as picture:
        assert picture.size == (2000, 900)


def test_the_lora_is_an_artifact_that_is_not_copied(tracked: Tracked) -> None:
    (artifact,) = [artifact for artifact in of_type(tracked.records, "artifact") if artifact["type"] == "lora"]
    assert artifact["name"] == "lora-dog3-random"
    (entry,) = artifact["manifest"]["contents"]
    assert entry["path"] == "lora.safetensors"
    assert Path(entry["local_path"]).read_bytes() == b"weights" * 100
    assert Path(entry["local_path"]) == RunFolder(tracked.folder).lora
    metadata = json.loads(artifact["metadata"])
    assert metadata["metrics"] == {"dino": 0.5}
    assert (metadata["token"], metadata["class"], metadata["label"]) == ("sks", "dog", "random weights")


def test_the_key_is_in_no_file(tracked: Tracked) -> None:
    files = [path for path in tracked.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_the_host_is_in_no_record(tracked: Tracked) -> None:
    (run,) = of_type(tracked.records, "run")
    assert not run.get("host")


def test_everything_is_in_the_runs_folder(tracked: Tracked) -> None:
    files = {path.name for path in tracked.folder.iterdir()}
    assert files == {"evaluate", "result.json", "sample", "tracking", "train"}
    assert list(Path.home().rglob("*")) == []


# ----------------------------------------------------------------------------------------- how runs begin and end


def test_a_failed_job_is_marked_and_goes_on_with_its_run_when_it_is_repeated(tmp_path: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        tracking.start(config(), folder=tmp_path, name="first", group=None) as tracker,
    ):
        tracker.train(ROWS[:1])
        raise ZeroDivisionError("half of nothing")
    (failed,) = inspect(tmp_path)
    assert exit_code(failed) == 1
    assert summary(failed)["error"] == "ZeroDivisionError: half of nothing"
    with tracking.start(config(), folder=tmp_path, name="second", group=None) as tracker:
        tracker.train(ROWS[:3])
    (repeated,) = inspect(tmp_path)  # what the first attempt left would be uploaded as a second run of the same id
    assert exit_code(repeated) == 0
    assert [row["train/step"] for row in history(repeated)] == [1, 2, 3]
    assert run_of(repeated)["run_id"] == run_of(failed)["run_id"]


def test_another_job_in_the_same_folder_has_a_run_of_its_own(tmp_path: Path) -> None:
    for rank in (4, 8):
        cfg = config()
        cfg.lora.rank = rank
        with tracking.start(cfg, folder=tmp_path, name=f"rank={rank}", group=None):
            pass
    first, second = inspect(tmp_path)
    assert run_of(first)["run_id"] != run_of(second)["run_id"]


def test_an_interrupt_marks_the_run_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tracking.start(config(), folder=tmp_path, name="run", group=None):
        raise KeyboardInterrupt
    (records,) = inspect(tmp_path)
    assert exit_code(records) == 1


def test_the_environment_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_DATA_DIR", "WANDB_SILENT", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CACHE_DIR", "mine")
    before = dict(os.environ)
    with tracking.start(config(), folder=tmp_path, name="run", group=None):
        assert Path(os.environ["WANDB_CACHE_DIR"]).is_relative_to(tmp_path)
        assert Path(os.environ["WANDB_DATA_DIR"]).is_relative_to(tmp_path)
    assert dict(os.environ) == before


def test_the_config_wins_over_environment_and_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_NAME", "theirs")
    cfg = config()
    cfg.tracking.group = "paper"
    cfg.experiment = None
    cfg.model.name = "m" * 80
    with tracking.start(cfg, folder=tmp_path, name="ours", group="10-00-00"):
        pass
    (records,) = inspect(tmp_path)
    (run,) = of_type(records, "run")
    assert (run["display_name"], run["run_group"]) == ("ours", "paper")
    assert run["tags"] == ["dog3", "m" * 63 + "…"]  # W&B takes 64 characters


def test_pictures_and_artifact_can_be_left_out(tmp_path: Path) -> None:
    cfg = config()
    cfg.tracking.images = cfg.tracking.artifact = False
    evaluate(tmp_path / "run")
    with tracking.start(cfg, folder=tmp_path / "run", name="run", group=None) as tracker:
        tracker.result()
    (records,) = inspect(tmp_path / "run")
    assert [artifact["type"] for artifact in of_type(records, "artifact")] == ["run_table"]
    logged = {key.split(".")[0] for row in history(records) for key in row}
    assert logged == {"metrics/dino", "base/dino", "real/dino", "tables/metrics"}


def test_one_lost_picture_costs_the_pictures_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = evaluate(tmp_path / "run")
    (run.sample / "0" / "0.png").unlink()
    with tracking.start(config(), folder=run.path, name="run", group=None) as tracker:
        tracker.result()
    assert ["the pictures" in message for message in caplog.messages if "lacks" in message] == [True]
    (records,) = inspect(tmp_path / "run")
    assert {artifact["type"] for artifact in of_type(records, "artifact")} == {"run_table", "lora"}


# ------------------------------------------------------------------------------------------- the summary of a sweep


@pytest.fixture(scope="module")
def summed(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """W&B's files of a summary that was made, made again with nothing new, and made anew."""
    sweep = tmp_path_factory.mktemp("sweep")
    evaluate(sweep / "0")
    cfg = config()
    cfg.tracking.group = "paper"
    with tracking.start(cfg, folder=sweep / "0", name="rank=4", group="10-00-00"):
        pass
    (sweep / "report.html").write_text("<p>the page</p>")
    first = replace(SUMMARY, points=[])
    for values in (first, first, SUMMARY):
        tracking.summarise(sweep, values, [sweep / "0", sweep / "1"])
    assert [path.name for path in sorted(sweep.iterdir())] == ["0", "report.html", "tracking"]
    return inspect(sweep / "tracking")


def test_a_sweep_has_one_summary_however_often_it_is_made(summed: list[list[dict[str, Any]]]) -> None:
    (records,) = summed
    run = run_of(records)
    assert (run["display_name"], run["run_group"], run["job_type"]) == ("summary paper", "paper", "sweep")
    assert exit_code(records) == 0


def test_the_summary_has_the_sentences_for_notes_and_the_page_for_a_panel(
    summed: list[list[dict[str, Any]]],
) -> None:
    assert "lora.rank 4 → 8: better DINO +0.100." in run_of(summed[0])["notes"]
    assert any("page.path" in row for row in history(summed[0]))


def test_the_summary_tells_of_the_best_job_and_counts_all(summed: list[list[dict[str, Any]]]) -> None:
    values = summary(summed[0])
    assert (values["best/title"], values["best/dino"], values["label"]) == ("0: rank=4", 0.5, "random weights")
    assert (values["jobs/finished"], values["jobs/failed"]) == (1, 1)


def test_the_table_of_a_summary_takes_cells_of_any_kind() -> None:
    table = wandb_summary.table(SUMMARY)
    assert (table.columns, table.data) == (SUMMARY.columns, SUMMARY.rows)


def test_a_summary_survives_the_disk(tmp_path: Path) -> None:
    Records(tmp_path).write_summary(asdict(SUMMARY))
    assert tracking.Summary(**(Records(tmp_path).summary() or {})) == SUMMARY


def test_jobs_that_are_not_tracked_have_no_summary(tmp_path: Path) -> None:
    tracking.summarise(tmp_path, SUMMARY, [tmp_path / "0"])
    assert list(tmp_path.iterdir()) == []
