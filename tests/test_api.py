"""dbexp in Python: the same as on the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import dbexp
import dbexp.pipeline.run
from dbexp.compare.results import RESULTS, write_results
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError
from dbexp.runs import record
from tests import builders, run_folders
from tests.sweeps import tiny


def test_importing_dbexp_costs_nothing() -> None:
    code = "import sys; before = set(sys.modules); import dbexp; print(*sorted(set(sys.modules) - before))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in result.stdout.split()}
    assert "dbexp" in loaded and loaded - sys.stdlib_module_names == {"dbexp"}


def test_composing_loads_no_torch() -> None:
    code = "import sys, dbexp; print(dbexp.compose(['lora.rank=3']).lora.rank, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["3", "False"]


def test_the_names_are_there() -> None:
    assert {"compose", "run", "load_results"} <= set(dir(dbexp))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dbexp.nothing  # noqa: B018  # looking is what raises
    assert callable(dbexp.run)


class TestCompose:
    def test_gives_a_checked_config(self) -> None:
        cfg = dbexp.compose(["model=sd15", "lora.rank=3", "seed=7"])
        assert isinstance(cfg, Config)
        assert (cfg.model.name, cfg.lora.rank, cfg.seeds.noise, cfg.sample.resolution) == ("sd15", 3, 7, 512)

    def test_leaves_hydra_as_it_was(self) -> None:
        GlobalHydra.instance().clear()
        dbexp.compose()
        assert not GlobalHydra.instance().is_initialized()

    def test_options_of_ones_own(self, tmp_path: Path) -> None:
        (tmp_path / "lora").mkdir()
        (tmp_path / "lora" / "mine.yaml").write_text("rank: 5\n")
        assert dbexp.compose(["lora=mine"], config_dir=tmp_path).lora.rank == 5
        with pytest.raises(ConfigError, match="config_dir=nowhere: there is no such folder"):
            dbexp.compose(config_dir="nowhere")

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["lora.rnak=3"], "lora.rnak: there is no such parameter; did you mean lora.rank?"),
            (["model=sd_15"], "model=sd_15: there is no such option; did you mean sd15?"),
            (["lora.rank=x"], "lora.rank=x: must be a whole number"),
            (["lora.rank=0", "train.steps=0"], "lora.rank=0: must be at least 1\ntrain.steps=0: must be at least 1"),
            (["lora.rank=1,2"], "lora.rank=1,2: several values make a sweep, and compose makes one config"),
        ],
    )
    def test_a_mistake_is_the_commands_message(self, overrides: list[str], says: str) -> None:
        with pytest.raises(ConfigError) as caught:
            dbexp.compose(overrides)
        assert says in str(caught.value)


class TestSweep:
    def test_is_the_commands_sweep(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        before = list(sys.argv)
        words = [*tiny(tmp_path / "store"), "train.steps=2"]
        swept = dbexp.sweep([*words, "lora.rank=2,4"], "it's a sweep")
        assert [run.status for run in swept.runs] == ["finished", "finished"]
        assert set(swept.results["lora.rank"]) == {2, 4}
        assert (tmp_path / "it's a sweep" / "results.csv").is_file() and swept.page.is_file()
        effects = swept.effects
        assert {"lora.rank"} == set(effects.loc[effects["kind"] == "effect", "parameter"])
        taken = swept.recommendation.set_index("lora.rank")
        scores = {int(run.config["lora.rank"]): run.value("recommend") for run in swept.runs}
        assert taken["recommend"].to_dict() == pytest.approx(scores, nan_ok=True)
        assert taken["recommended"].sum() == (1 if dbexp.recommend(swept.folder).first else 0)
        assert any(sentence.startswith("lora.rank 2 → 4") for sentence in swept.statements)
        assert "lora.rank" in swept._repr_html_()
        assert sys.argv == before and not GlobalHydra.instance().is_initialized()

    def test_every_problem_before_anything_is_computed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ConfigError, match=r"(?s)lora.rank=0.*lora.rank=-1"):
            dbexp.sweep(["lora.rank=0,-1,4"], "sweep")
        with pytest.raises(ConfigError, match="ranc"):
            dbexp.sweep(["lora.ranc=1,2"])

    def test_a_run_that_fails_is_one_of_its_runs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        words = [*tiny(tmp_path / "store"), "train.steps=2", "train.lr=1e-3,1e9"]
        swept = dbexp.sweep(words, "sweep")
        assert [run.status for run in swept.runs] == ["finished", "diverged"]


class TestRun:
    def test_a_run_leaves_what_the_command_leaves(self) -> None:
        run = run_folders.really_run()
        assert run.report is not None
        assert (
            run.report.rows["run"]["dino"].value
            == json.loads((run.folder / "result.json").read_text())["metrics"]["dino"]
        )
        assert list(run.overrides) == run_folders.overrides()
        assert OmegaConf.load(run.folder / ".hydra" / "overrides.yaml") == run_folders.overrides()
        assert OmegaConf.load(run.folder / ".hydra" / "config.yaml").lora.rank == 2
        weights = (run.folder / "train" / "lora.safetensors").read_bytes()
        assert str(builders.scratch()).encode() not in weights, "the file is uploaded and shared: no places in it"

    def test_it_is_the_commands_code(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        monkeypatch.setattr(dbexp.pipeline.run, "run", lambda *arguments: calls.append(arguments))
        monkeypatch.setattr(record, "read", lambda folder: SimpleNamespace(folder=folder))
        cfg = dbexp.compose(["lora.rank=3"])
        changed = replace(cfg, lora=replace(cfg.lora, rank=4))
        assert dbexp.run(cfg, tmp_path / "0").folder == tmp_path / "0"
        dbexp.run(changed, tmp_path / "1")
        dbexp.run(["lora.rank=5"], tmp_path / "2")
        monkeypatch.chdir(tmp_path)
        assert dbexp.run(cfg).folder.parts[0] == "outputs"
        assert [(arguments[0].lora.rank, arguments[2]) for arguments in calls] == [
            (3, ["lora.rank=3"]),
            (4, []),
            (5, ["lora.rank=5"]),
            (3, ["lora.rank=3"]),
        ]

    def test_a_changed_config_is_checked_again(self, tmp_path: Path) -> None:
        cfg = dbexp.compose()
        with pytest.raises(ConfigError, match=r"lora\.rank=0: must be at least 1"):
            dbexp.run(replace(cfg, lora=replace(cfg.lora, rank=0)), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"file/run: .*choose another place"):
            dbexp.run(dbexp.compose(), tmp_path / "file" / "run")


class TestLoadResults:
    @pytest.fixture
    def sweep(self, tmp_path: Path) -> Path:
        for number, dino in enumerate((0.5, 0.7)):
            made_with = replace(run_folders.config(), objective=["dino"])
            made_with = replace(made_with, lora=replace(made_with.lora, rank=number + 1))
            columns = {"dino": dino, "pres": 1 / 3}
            run_folders.make(tmp_path / str(number), f"lora.rank={number + 1}", made_with=made_with, columns=columns)
        failed = {"name": "x", "overrides": [], "status": "failed", "error": "no", "config": {}}
        (tmp_path / "2").mkdir()
        (tmp_path / "2" / "result.json").write_text(json.dumps(failed))
        return tmp_path

    def test_the_numbers_are_those_of_the_csv(self, sweep: Path) -> None:
        table = dbexp.load_results(sweep)
        assert list(table["job"]) == ["1", "0", "2"], "best first, failures last"
        assert list(table["status"]) == ["finished", "finished", "failed"]
        assert list(table["lora.rank"])[:2] == [2, 1]
        assert list(table["folder"]) == [str(sweep / name) for name in "102"]
        write_results(sweep, "dino")
        with (sweep / RESULTS).open() as file:
            written = list(csv.DictReader(file))
        for column in ("dino", "dino_low", "dino_high", "pres"):
            assert [float(row[column]) for row in written[:2]] == list(table[column])[:2]
        assert table["dino"].isna().tolist() == [False, False, True]
        assert table["error"].fillna("").tolist() == ["", "", "no"]

    def test_a_real_run(self) -> None:
        run = run_folders.really_run()
        assert run.report is not None
        table = dbexp.load_results(run.folder.parent)
        assert table["dino"][0] == pytest.approx(run.report.rows["run"]["dino"].value, rel=1e-8)

    def test_mistakes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match="holds no result of a job"):
            dbexp.load_results(tmp_path)
        (tmp_path / "result.json").write_text("{")
        with pytest.raises(ConfigError, match="a file of the sweep cannot be read"):
            dbexp.load_results(tmp_path)
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(ConfigError, match=r"needs the package pandas; pip install '\.\[notebook\]'"):
            dbexp.load_results(tmp_path)
