"""The command line: what it says, what it returns, and that asking for help costs no import of torch."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import dbexp.pipeline
from dbexp.config.groups import conf_dir, options
from dbexp.config.schema import Config
from dbexp.core.errors import ConfigError, Interrupted, TrainingDiverged
from dbexp.pipeline import command, plan

Cli = Callable[..., "tuple[int, str]"]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stages that do nothing but note what they were called with; see `stage` to make them do something."""
    call: list[dict[str, Any]] = []

    def stages_run(cfg: Config, folder: Path, overrides: list[str], sweep: str | None) -> dict[str, float]:
        call.append({"config": cfg, "folder": folder, "overrides": overrides, "sweep": sweep})
        return {"dino": 0.5 + cfg.lora.rank / 100, "clip_t": 0.25, "recommend": 0.6}

    def ready(config: Config, problems: Sequence[str]) -> None:
        if problems:
            raise ConfigError(problems)

    monkeypatch.setattr(plan, "check", lambda runs, faults, **_: faults.raise_if_any())
    monkeypatch.setattr(dbexp.pipeline, "run", SimpleNamespace(run=stages_run, ready=ready), raising=False)
    return call


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """`cli("lora.rank=4")` runs the command in an empty folder and gives exit status and stderr."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*argv: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dbexp", *argv])
        GlobalHydra.instance().clear()
        status = 0
        try:
            command.main()
        except SystemExit as stop:
            if isinstance(stop.code, str):  # as the interpreter would
                print(stop.code, file=sys.stderr)
            status = 1 if isinstance(stop.code, str) else int(stop.code or 0)
        return status, capfd.readouterr().err

    yield call
    for handler in {*root.handlers} - {*handlers}:
        handler.close()
    root.handlers[:], root.level = handlers, level
    GlobalHydra.instance().clear()


def test_one_run(cli: Cli, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cli("lora.rank=4") == (0, "")
    (call,) = jobs
    assert isinstance(call["config"], Config)
    assert call["config"].lora.rank == 4
    assert call["overrides"] == ["lora.rank=4"]
    assert call["sweep"] is None
    assert call["folder"].relative_to(tmp_path).parts[0] == "outputs"
    assert OmegaConf.load(call["folder"] / ".hydra" / "config.yaml").lora.rank == 4
    assert (call["folder"] / "dbexp.log").is_file()


def test_a_sweep(cli: Cli, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    assert cli("-m", "hydra/launcher=basic", "lora.rank=4,8", "prior.weight=0,1")[0] == 0
    assert [(call["config"].lora.rank, call["config"].prior.weight) for call in jobs] == [
        (4, 0),
        (4, 1),
        (8, 0),
        (8, 1),
    ]
    folders = [call["folder"].relative_to(tmp_path) for call in jobs]
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]
    assert {folder.parts[0] for folder in folders} == {"multirun"}
    assert {call["sweep"] for call in jobs} == {"/".join(folders[0].parts[1:3])}


@pytest.mark.parametrize(
    "words",
    ["lora.rank=4 -m hydra/launcher=basic prior.weight=0,1", "lora.rank=4 hydra/launcher=basic prior.weight=0,1 -m"],
)
def test_switches_may_stand_anywhere(cli: Cli, jobs: list[dict[str, Any]], words: str) -> None:
    assert cli(*words.split())[0] == 0
    assert [(call["config"].lora.rank, call["config"].prior.weight) for call in jobs] == [(4, 0), (4, 1)]


@pytest.mark.parametrize("launcher", ["basic", "pack"])
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora=glob(x*)", "lora=glob(x*): no option of lora matches, so the sweep has no runs; it has attention, "),
        ("lora.rank=range(4,4)", "lora.rank=range(4,4): no number lies in this range, so the sweep has no runs"),
    ],
)
def test_a_sweep_without_runs(
    cli: Cli, jobs: list[dict[str, Any]], tmp_path: Path, launcher: str, override: str, says: str
) -> None:
    status, stderr = cli("-m", f"hydra/launcher={launcher}", override, "train.steps=1,2")
    assert (status, jobs, len(stderr.splitlines())) == (1, [], 1)
    assert stderr.startswith(f"dbexp: {says}")
    assert not list(tmp_path.iterdir())


def test_a_reference_table_runs_row_by_row(cli: Cli, jobs: list[dict[str, Any]]) -> None:
    assert cli("hydra/launcher=basic", "experiment=reference/diffusers")[0] == 0
    rows = ["with_prior", "without_prior", "polynomial", "rank32"]
    assert [call["config"].experiment for call in jobs] == [f"reference/diffusers/{row}" for row in rows]


def test_the_command_line_narrows_a_table(cli: Cli, jobs: list[dict[str, Any]]) -> None:
    table = "experiment/reference/diffusers"
    rows = f"{table}=with_prior,rank32"
    assert cli("-m", "hydra/launcher=basic", "experiment=reference/diffusers", rows, "seed=1,2")[0] == 0
    assert [(call["config"].lora.rank, call["config"].seed) for call in jobs] == [(16, 1), (16, 2), (32, 1), (32, 2)]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("lora.rnak=3", "lora.rnak: there is no such parameter; did you mean lora.rank?"),
        ("rank=3", "rank: there is no such parameter; did you mean lora.rank?"),
        ("datset=dog", "datset: there is no such parameter; did you mean dataset?"),
        ("+lora.foo=1", "foo"),
        ("+foo=1", "foo"),
        ("model=sd_15", "model=sd_15: there is no such option; did you mean sd15?"),
        ("experiment=reference/difusers", "did you mean reference/diffusers?"),
        ("lora.rank=abc", "lora.rank=abc: must be a whole number"),
        ("lora.rank=1.5", "lora.rank=1.5: must be a whole number"),
        ("sample.prompts=[a", "sample.prompts=[a: a list ends with a bracket"),
        ("dataset.path=фото", """needs quotes around this value: 'dataset.path="фото"'"""),
        ("dataset.prompt='{token.real}'", "has {token.real}: only {token} and {class} may stand in braces"),
        ("lora.rank=0", "lora.rank=0: must be at least 1"),
        ("lora=4", "lora=4: lora is a group, and its value must be a string: attention, "),
        ("=5", "=5: write NAME=VALUE"),
        ("lora=null", "lora=null: lora is a group, and its value must be a string: attention, "),
        ("dataset=[a,b]", "dataset=[a,b]: dataset is a group, and its value must be a string: "),
        ("sample.base=2", "sample.base=2: must be true or false"),
        ("train.steps=" + "9" * 5000, "no setting takes a number of 5,000 digits"),
        ("train.lr=1e400", "train.lr=inf: must be greater than 0"),
        ("train.lr=1" + "0" * 400, "train.lr=inf: must be greater than 0"),
        ("lora.rank=${lora.rank}", "lora.rank: "),
        ("train.steps=1,2", "train.steps=1,2: several values make a sweep, one run each: add -m"),
        ("dataset.path=a,b", """one value with commas in it is written 'dataset.path="a,b"'"""),
        ("tracking.tags=a,b", "one value that is a list is written tracking.tags=[a,b]"),
        ("lora=attention,linear", "as in `dbexp -m lora=attention,linear`"),
        ("lora.rank=range(2,5)", "lora.rank=range(2,5): several values make a sweep"),
        ("--resolve", "--resolve"),
    ],
)
def test_a_mistake_is_one_clear_message(
    cli: Cli, jobs: list[dict[str, Any]], tmp_path: Path, argument: str, says: str
) -> None:
    status, stderr = cli(argument)
    assert status == 1
    assert not jobs
    (message,) = stderr.splitlines()
    assert message.startswith("dbexp: ")
    assert says in message
    assert not list(tmp_path.iterdir()), "a refused run leaves nothing"


@pytest.mark.parametrize("where", ["usual", "its own"])
def test_a_refused_sweep_leaves_nothing(cli: Cli, tmp_path: Path, where: str) -> None:
    folder = [f"hydra.sweep.dir={tmp_path}/a/b"] if where == "its own" else []
    status, stderr = cli("-m", "lora.rank=4,0", *folder)
    assert (status, stderr) == (1, "dbexp: job 1 (rank=0): lora.rank=0: must be at least 1\n")
    assert not list(tmp_path.iterdir())


def test_a_refused_run_leaves_an_earlier_ones_folder_alone(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("of the earlier run")
    assert cli(f"hydra.run.dir={folder}", "lora.rank=0")[0] == 1
    assert [path.read_text() for path in folder.rglob("*") if path.is_file()] == ["of the earlier run"]


@pytest.mark.parametrize("sweep", [False, True])
def test_paths_are_those_of_the_user_wherever_a_job_works(
    cli: Cli, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sweep: bool
) -> None:
    def look(config: Config, *_: Any) -> dict[str, float]:
        assert Path(str(config.prior.path)).resolve() == tmp_path / "dogs"
        return {"recommend": 0.5}

    (tmp_path / "dogs").mkdir()
    monkeypatch.setattr(dbexp.pipeline.run, "run", look)
    words = ["-m", "hydra/launcher=basic", "lora.rank=4,8"] if sweep else []
    assert cli(*words, "hydra.job.chdir=true", "prior.path=dogs")[0] == 0
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    ("subdir", "says"),
    [
        ("${dataset.name}", "storybook/dog: is the folder of job 0 too; add /${hydra.job.num} to it"),
        ("all", "all: is the folder of job 0 too; add /${hydra.job.num} to it"),
        ("../${lora.rank}", "../4: leads out of the folder of the sweep"),
        ("${lora.rank}", None),
        ("${hydra.job.override_dirname}", None),
        ("a/${hydra.job.num}", None),
    ],
)
def test_jobs_do_not_write_over_each_other(
    cli: Cli, jobs: list[dict[str, Any]], tmp_path: Path, subdir: str, says: str | None
) -> None:
    status, stderr = cli("-m", "hydra/launcher=basic", "lora.rank=4,8", f"hydra.sweep.subdir='{subdir}'")
    assert (status, len(jobs)) == ((1, 0) if says else (0, 2))
    if says:
        assert f"hydra.sweep.subdir={says}" in stderr and stderr.startswith("dbexp: ")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["x" * 300, "file/y"])
def test_a_jobs_folder_that_cannot_be_made_is_told_before_a_sweep(cli: Cli, tmp_path: Path, name: str) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "file").touch()
    folder = f"hydra.sweep.dir={tmp_path}/sweep"
    status, stderr = cli("-m", "lora.rank=4,8", folder, f"hydra.sweep.subdir={name}/${{hydra.job.num}}")
    assert (status, stderr.count("hydra.sweep.subdir=")) == (1, 2)
    assert ("is a file" if "file" in name else "File name too long") in stderr and "Traceback" not in stderr


def test_what_is_said_before_there_is_a_log_is_in_it(
    cli: Cli, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ready(config: Config, problems: Sequence[str]) -> None:
        logging.getLogger("dbexp.models").info("device: cpu")

    monkeypatch.setattr(dbexp.pipeline.run, "ready", ready)
    assert cli() == (0, "device: cpu\n")
    assert "dbexp.models: device: cpu" in (jobs[0]["folder"] / "dbexp.log").read_text()


def test_several_mistakes_come_together(cli: Cli, jobs: list[dict[str, Any]]) -> None:
    status, stderr = cli("lora.rank=0", "train.steps=0")
    assert status == 1
    assert stderr == "dbexp: 2 problems\n  lora.rank=0: must be at least 1\n  train.steps=0: must be at least 1\n"


def test_what_is_missing_does_not_hide_the_rest(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = ["dataset=folder", "dataset.path=empty", "dataset.class_noun=dog", "lora.rank=0", "objective=nonsense"]
    status, stderr = cli(*words, "sample.prompts=[]", "store=/dev/null/x")
    assert status == 1 and stderr.splitlines()[0] == "dbexp: 6 problems"
    fields = ["dataset.live", "lora.rank", "objective", "dataset.path", "sample.prompts", "store"]
    assert [line.split("=")[0].split(":")[0].strip() for line in stderr.splitlines()[1:]] == fields
    assert "dataset.live: has no value; give one, dataset.live=..." in stderr and "no picture in" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_value_of_which_no_key_can_be_made_is_one_message(cli: Cli, tmp_path: Path) -> None:
    status, stderr = cli("model.family='\udce4'", f"store={tmp_path}/store")
    assert status == 1 and stderr.startswith("dbexp: model.family=") and "Traceback" not in stderr


def test_base_model_and_metric_networks_are_told_together(cli: Cli, tmp_path: Path) -> None:
    """Those that are named and not there: what a hub may have is asked for when all else is right."""
    words = ["model=custom", "model.name=x", "model.path=nowhere", "model.sample_path=/none/x.safetensors"]
    words += [f"evaluate.{name}=none.pt" for name in ("dino.weights", "lpips.trunk", "lpips.heads")]
    status, stderr = cli(*words, f"store={tmp_path}/store", "dataset.name=storybook/unicorn")
    assert status == 1 and stderr.splitlines()[0] == "dbexp: 6 problems", stderr
    fields = ["dataset.name", "model.path", "model.sample_path"]
    fields += [word.split("=")[0] for word in words if "none.pt" in word]
    assert [line.split("=")[0].strip() for line in stderr.splitlines()[1:]] == fields
    assert not list(tmp_path.iterdir())


def test_hydras_own_report(cli: Cli, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    status, stderr = cli("lora.rank=0")
    assert status == 1
    assert "Error executing job with overrides: ['lora.rank=0']" in stderr
    assert "ConfigError: lora.rank=0: must be at least 1" in stderr


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ConfigError(["first", "second"]), 1, "dbexp: 2 problems\n  first\n  second\n"),
        (TrainingDiverged("the loss became nan at step 3"), 1, "dbexp: the loss became nan at step 3\n"),
        (Interrupted(signal.SIGINT, "stopped at step 3"), 130, "dbexp: stopped at step 3\n"),
        (Interrupted(signal.SIGTERM, "stopped at step 3"), 143, "dbexp: stopped at step 3\n"),
        (KeyboardInterrupt(), 130, "all that was finished are kept: the same command goes on from there\n"),
    ],
)
def test_what_the_stages_raise(
    cli: Cli, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, says: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(dbexp.pipeline.run, "run", fail)
    got, stderr = cli()
    assert got == status
    assert stderr.endswith(says)
    assert "Traceback" not in stderr


def test_an_interrupt_ends_a_sweep(cli: Cli, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def stop(*_: Any) -> None:
        calls.append(1)
        raise Interrupted(signal.SIGTERM, "stopped")

    monkeypatch.setattr(dbexp.pipeline.run, "run", stop)
    assert cli("-m", "hydra/launcher=basic", "lora.rank=4,8")[0] == 143
    assert len(calls) == 1


@pytest.mark.parametrize("error", [ValueError("shapes differ"), OSError("shapes differ")])
def test_a_fault_of_ours_keeps_its_traceback(
    cli: Cli, jobs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(dbexp.pipeline.run, "run", fail)
    with pytest.raises(type(error), match="shapes differ"):
        cli()


def test_a_folder_that_cannot_be_made(cli: Cli, jobs: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, stderr = cli("hydra.run.dir=file/run")
    assert (status, jobs) == (1, [])
    assert stderr.startswith("dbexp: file: File exists; choose another place with ")
    assert "hydra.run.dir=FOLDER" in stderr
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("objective", "values", "returned"),
    [
        ("dino", {"dino": 0.5, "clip_t": 0.25}, 0.5),
        ("dino, clip_t", {"dino": 0.5, "clip_t": 0.25}, (0.5, 0.25)),
        ("recommend", {"dino": 0.5, "recommend": 0.7}, 0.7),
        ("1*dino-1*pres", {"dino": 0.5, "1*dino-1*pres": 0.1}, 0.1),
        ("dino", {}, None),  # a process that is not the first
    ],
)
def test_the_objective_is_returned(
    composed: Callable[..., Any],
    jobs: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    objective: str,
    values: dict[str, float],
    returned: Any,
) -> None:
    monkeypatch.setattr(dbexp.pipeline.run, "run", lambda *_: values)
    whole = composed(f"objective='{objective}'", return_hydra_config=True)
    whole = OmegaConf.merge(whole, {"hydra": {"mode": "RUN", "runtime": {"output_dir": "here"}}})
    assert isinstance(whole, DictConfig)
    HydraConfig.instance().set_config(whole)
    assert command.job(OmegaConf.masked_copy(whole, [str(key) for key in whole if key != "hydra"])) == returned


def python(*argv: str, cwd: Path, **env: str) -> str:
    """What a Python of its own prints, somewhere else in the file system."""
    path = str(Path(dbexp.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, cwd=cwd, env={**os.environ, "PYTHONPATH": path, **env}
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_config_is_shown_from_anywhere_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['dbexp', '--cfg', 'job', '--resolve', 'model=sd15']\n"
        "from dbexp.pipeline.command import main; main()\n"
        "assert not {'torch', 'diffusers', 'wandb'} & sys.modules.keys()"
    )
    assert OmegaConf.create(python("-c", code, cwd=tmp_path)).sample.resolution == 512
    assert not list(tmp_path.iterdir())


def test_tab_completion(tmp_path: Path) -> None:
    assert "complete -o nospace" in python("-m", "dbexp", "-sc", "install=bash", cwd=tmp_path)
    offered = python("-m", "dbexp", "-sc", "query=bash", cwd=tmp_path, COMP_LINE="dbexp model=sd", COMP_POINT="14")
    assert offered.split() == [f"model={name}" for name in options([conf_dir()])["model"] if name.startswith("sd")]
    line = "dbexp -m hydra/launcher=pack_s"
    offered = python("-m", "dbexp", "-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert offered.split() == ["hydra/launcher=pack_slurm", "hydra/launcher=pack_submitit_local"], "Hydra's own"


def test_every_command_says_dbexps_version(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from dbexp.compare import command as compare_command
    from dbexp.export import command as export_command
    from dbexp.generate import command as generate_command

    for main in (command.main, compare_command.main, generate_command.main, export_command.main):
        monkeypatch.setattr(sys, "argv", ["command", "--version"])
        with suppress(SystemExit):
            main()
        assert capsys.readouterr().out == f"dbexp {dbexp.__version__}\n"
