"""A run folder that comes from a stranger: nothing in it reaches outside, is resolved or is believed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from dbexp.compare.gather import compare
from dbexp.compare.page import gallery
from dbexp.compare.page.curves import curves
from dbexp.config.schema import ModelConfig
from dbexp.config.values import plain, structured
from dbexp.core.errors import ConfigError
from dbexp.export import command
from dbexp.generate import command as generate
from dbexp.runs import foreign
from dbexp.runs.record import DAMAGED, open_runs, scan
from tests import run_folders
from tests.compare import sweeps

SECRET = "hf_never_to_be_seen"
LEAK = "${oc.env:A_KEY}"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run, to be spoilt; and a key in the environment."""
    monkeypatch.setenv("A_KEY", SECRET)
    return run_folders.make(tmp_path / "sweep" / "0")


def spoil(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file."""
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


class TestLiteral:
    @pytest.mark.parametrize("text", [LEAK, "\\" + LEAK, "\\\\" + LEAK, "a ${seed} b", "${oc.decode:${oc.env:A_KEY}}"])
    def test_records(self, run: Path, text: str) -> None:
        spoil(run / "evaluate" / "metrics.json", lambda record: record["config"]["dataset"].update(name=text))
        (opened,) = open_runs([str(run)], None)
        assert opened.config.dataset.name == text
        (scanned,) = scan(run.parent)
        assert scanned.config["dataset.name"] == text

    def test_numbers_are_refused(self, run: Path) -> None:
        spoil(run / "evaluate" / "metrics.json", lambda record: record["config"]["lora"].update(rank=LEAK))
        with pytest.raises(ConfigError, match=r"lora\.rank.*\$\{oc\.env:A_KEY\}") as caught:
            open_runs([str(run)], None)
        assert SECRET not in str(caught.value) and "\0" not in str(caught.value)

    def test_hydras_config_of_a_run_that_did_not_end(self, run: Path) -> None:
        shutil.rmtree(run / "evaluate")
        composed = plain(run_folders.config())
        composed["seeds"]["init"], composed["dataset"]["name"] = "${seed}", LEAK
        composed["model"]["label"], composed["dataset"]["token"] = "${dataset.name}", "a ${seed}"
        (run / ".hydra").mkdir()
        OmegaConf.save(OmegaConf.create(composed), run / ".hydra" / "config.yaml")
        (opened,) = open_runs([str(run)], None)
        assert opened.config.seeds.init == opened.config.seed, "a value in the same file"
        assert opened.config.dataset.name == LEAK
        assert opened.config.model.label == "${dataset.name}" and opened.config.dataset.token == "a ${seed}"

    @pytest.mark.parametrize(
        "text",
        ["a: &a [x]\nb: [*a, *a]", "[1, 2]", "a: [", "!!python/object/apply:os.system [ls]", "[" * 9000, "a: ${"],
    )
    def test_what_is_no_config(self, run: Path, text: str) -> None:
        shutil.rmtree(run / "evaluate")
        (run / ".hydra").mkdir()
        (run / ".hydra" / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match="its config cannot be read"):
            open_runs([str(run)], None)

    def test_a_config_goes_round(self) -> None:
        settings = plain(run_folders.config())
        settings["dataset"]["name"] = settings["objective"] = LEAK
        config = structured(settings, literal=True)
        assert config.dataset.name == LEAK and config.objective == [LEAK]
        assert structured(plain(config), literal=True) == config

    def test_nothing_leaves_by_an_export(self, run: Path, tmp_path: Path) -> None:
        def spoilt(record: dict[str, Any]) -> None:
            record["config"]["dataset"].update(name=LEAK, class_noun=LEAK)
            record["config"].update(store=str(tmp_path / "their store"))

        spoil(run / "evaluate" / "metrics.json", spoilt)
        spoil(run / "result.json", lambda record: record.update(name=LEAK))
        out = tmp_path / "out"
        command.main([f"run={run}", f"folder={out}", "check=false"])
        assert LEAK in (out / "README.md").read_text()
        for path in out.rglob("*"):
            assert SECRET not in path.name and SECRET.encode() not in path.read_bytes()
        assert not (tmp_path / "their store").exists(), "the store is the user's choice"

    def test_nothing_leaves_by_generated_pictures(self, run: Path, tmp_path: Path) -> None:
        def spoilt(record: dict[str, Any]) -> None:
            record["config"]["dataset"].update(name=LEAK, token=LEAK)
            record["config"].update(store=str(tmp_path / "their store"))

        spoil(run / "evaluate" / "metrics.json", spoilt)
        spoil(run / "result.json", lambda record: record.update(name=LEAK))
        out = tmp_path / "out"
        generate.main([f"run={run}", f"folder={out}", "prompt=a {token}", "images=1", "steps=1"])
        (picture,) = out.glob("*/*/*.png")
        with Image.open(picture) as image:
            texts = {**image.info}
        assert LEAK in str(texts) and SECRET not in str(texts)
        assert all(SECRET not in path.name for path in out.rglob("*"))
        assert not (tmp_path / "their store").exists()


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "a list for the report": lambda r: r.update(report=[]),
    "a list for the rows": lambda r: r["report"].update(rows=[1]),
    "no row of the run": lambda r: r["report"]["rows"].pop("run"),
    "a text for a value": lambda r: r["report"]["rows"]["run"]["dino"].update(value="0.5"),
    "true for a value": lambda r: r["report"]["rows"]["run"]["dino"].update(value=True),
    "a value that no float holds": lambda r: r["report"]["rows"]["run"]["dino"].update(value=10**400),
    "a list for a value": lambda r: r["report"]["rows"]["run"]["dino"].update(value=[0.5]),
    "a text for notes": lambda r: r["report"].update(notes=[1]),
    "a list for backbones": lambda r: r["report"].update(backbones=[["dino", "x"]]),
    "a text for pictures": lambda r: r["report"].update(images="none"),
    "no version": lambda r: r["report"].pop("metric_version"),
    "a list for the config": lambda r: r.update(config=[1, 2]),
    "no config": lambda r: r.pop("config"),
    "a list for parameters": lambda r: r.update(train={"parameters": [1]}),
    "a list for train": lambda r: r.update(train=[1]),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_a_record_that_is_none_is_damaged(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    spoil(run / "evaluate" / "metrics.json", change)
    (scanned,) = scan(run.parent)
    assert scanned.status == DAMAGED and scanned.report is None
    assert scanned.error is not None and scanned.error.endswith("run it again")
    with pytest.raises(ConfigError):
        open_runs([str(run.parent)], None)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "[" * 100_000, '{"name": 1}', '{"name": "x", "status":', "\ufeff{}"]
)
@pytest.mark.parametrize("file", ["result.json", "evaluate/metrics.json"])
def test_a_file_that_is_no_record_is_damaged(run: Path, file: str, text: str) -> None:
    (run / file).write_text(text)
    assert [scanned.status for scanned in scan(run.parent)] == [DAMAGED]
    with pytest.raises(ConfigError):
        open_runs([str(run.parent)], None)


@pytest.mark.parametrize(
    "result",
    [
        {"name": ["x"], "overrides": [], "status": "finished"},
        {"name": "x", "overrides": "lora.rank=1", "status": "finished"},
        {"name": "x", "overrides": [1], "status": "finished"},
        {"name": "x", "overrides": [], "status": "failed", "error": ["no"], "config": {}},
        {"name": "x", "overrides": [], "status": "failed", "error": "no", "config": []},
    ],
)
def test_a_result_of_wrong_types_is_damaged(run: Path, result: dict[str, Any]) -> None:
    (run / "result.json").write_text(json.dumps(result))
    assert [scanned.status for scanned in scan(run.parent)] == [DAMAGED]


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("model", "family", "strange"),
        ("sample", "resolution", 33),
        ("sample", "resolution", -8),
        ("lora", "rank", 0),
        ("dataset", "prompt", "a {token:1000000000}"),
        ("dataset", "prompt", "a {token.__class__}"),
        ("dataset", "prompt", "a {0}"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(run: Path, group: str, name: str, value: object) -> None:
    spoil(run / "evaluate" / "metrics.json", lambda record: record["config"][group].update({name: value}))
    with pytest.raises(ConfigError, match=f"{group}.{name}"):
        open_runs([str(run)], None)


class TestPaths:
    @pytest.fixture
    def sweep(self, tmp_path: Path) -> Path:
        """Two runs with pictures, and a private photograph beside them."""
        Image.new("RGB", (32, 32), "red").save(tmp_path / "private.png")
        return sweeps.sweep(tmp_path / "sweep", {"lora.rank": (4, 8)})

    @pytest.mark.parametrize("field", ["images", "class_images", "copies"])
    @pytest.mark.parametrize("path", ["../../private.png", "/etc/hostname", "sample/../../../private.png", "a\0b"])
    def test_records_that_name_files_elsewhere_are_damaged(self, sweep: Path, field: str, path: str) -> None:
        for name in ("path", "nearest"):
            metrics = sweep / "0" / "evaluate" / "metrics.json"
            before = metrics.read_text()
            spoil(metrics, lambda record: record["report"][field][0].update({name: path}))  # noqa: B023  # called at once
            assert [scanned.status for scanned in scan(sweep)] == [DAMAGED, "finished"]
            metrics.write_text(before)
        assert [scanned.status for scanned in scan(sweep)] == ["finished", "finished"]

    def test_links_that_lead_outside_are_no_pictures(self, sweep: Path, tmp_path: Path) -> None:
        comparison = compare([sweep])
        every = {path for sheet in gallery.sheets(comparison) for path in gallery.by_importance([sheet], {}, [])}
        spoilt = sorted(path for path in every if path.is_relative_to(sweep / "0"))
        assert any("dataset" in path.parts for path in spoilt) and len(spoilt) > 3
        for number, path in enumerate(spoilt):
            path.unlink()
            os.mkfifo(path) if number % 2 else path.symlink_to(tmp_path / "private.png")
        comparison = compare([sweep])
        sheets, extremes = gallery.sheets(comparison), gallery.extremes(comparison)
        rest = set(gallery.by_importance(sheets, extremes, gallery.copies(comparison)))
        assert rest and not rest & set(spoilt)

    def test_a_pipe_for_the_history_does_not_hang(self, run: Path) -> None:
        os.mkfifo(run / "train" / "history.jsonl")
        assert curves(run) == {}

    @pytest.mark.parametrize("file", ["result.json", "evaluate/metrics.json", "train/lora.safetensors"])
    @pytest.mark.parametrize("kind", ["link", "pipe"])
    def test_files_of_a_run_are_its_own(self, run: Path, tmp_path: Path, file: str, kind: str) -> None:
        (run / file).rename(tmp_path / "elsewhere")
        os.mkfifo(run / file) if kind == "pipe" else (run / file).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ConfigError):
            open_runs([str(run.parent if file == "result.json" else run)], None)

    def test_an_export_copies_samples_alone(self, sweep: Path, tmp_path: Path) -> None:
        """Not the subject's photographs, nor what a link shows, whatever the record calls them."""
        run = tmp_path / "run"
        shutil.copytree(run_folders.really_run().folder, run)
        record = json.loads((run / "evaluate" / "metrics.json").read_text())
        first, second = (p["prompt"] for p in record["report"]["prompts"] if p["row"] == "run")
        for image in record["report"]["images"]:
            if image["row"] == "run" and image["prompt"] == first:
                image["path"] = next((run / "dataset").iterdir()).relative_to(run).as_posix()
            elif image["row"] == "run":
                (run / image["path"]).unlink()
                (run / image["path"]).symlink_to(tmp_path / "private.png")
        (run / "evaluate" / "metrics.json").write_text(json.dumps(record))
        command.main([f"run={run}", f"folder={tmp_path / 'out'}", "check=false"])
        assert not (tmp_path / "out" / "images").exists()
        assert first != second


def test_within(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    (folder / "good").symlink_to("sub/a")
    (folder / "bad").symlink_to("../b")
    (folder / "circle").symlink_to("circle")
    (folder / "up").symlink_to("..")
    allowed = {"sub/a": True, "good": True, "missing": True, "sub/../sub/a": True}
    refused = ["bad", "up/b", "../b", str(tmp_path / "b"), "sub", "a\0b", "x" * 5000, "circle"]
    assert {path: foreign.within(folder, path) for path in [*allowed, *refused]} == allowed | dict.fromkeys(
        refused, False
    )
    assert foreign.regular(folder, "good") and not foreign.regular(folder, "missing")


class TestBaseModels:
    @pytest.mark.parametrize("field", ["path", "vae", "single_file_config"])
    def test_nothing_is_fetched_that_only_a_record_names(self, run: Path, tmp_path: Path, field: str) -> None:
        spoil(run / "evaluate" / "metrics.json", lambda record: record["config"]["model"].update({field: "a/stranger"}))
        says = r"its base model is a/stranger of the hub, which only the record of the run names"
        with pytest.raises(SystemExit, match=says):
            command.main([f"run={run}", f"folder={tmp_path / 'out'}"])
        with pytest.raises(SystemExit, match=says):
            generate.main([f"run={run}", "prompt=a {token}", f"folder={tmp_path / 'out'}"])
        assert not (tmp_path / "out").exists()

    def test_what_the_user_names_or_dbexp_ships_or_the_machine_has_is_no_strangers(self, tmp_path: Path) -> None:
        sd15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
        for path in (sd15, "random", "package:storybook/weights", str(tmp_path)):
            assert foreign.unnamed_models(ModelConfig(name="m", path=path), []) == []
        strange = ModelConfig(name="m", path="a/b", vae="c/d")
        assert foreign.unnamed_models(strange, []) == ["a/b", "c/d"]
        assert foreign.unnamed_models(strange, ["a/b"]) == ["c/d"]
